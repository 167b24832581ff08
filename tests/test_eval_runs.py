"""Runs that stop, go on, and are split over processes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from segment_anything.datasets import SampleError
from segment_anything.evaluation.runs import Row, Shard, Value, run


@dataclass(frozen=True)
class Number:
    """An item that is a number."""

    value: int

    @property
    def name(self) -> str:
        return f"{self.value}.png"


@dataclass
class Squares:
    """A protocol that squares numbers, and fails as told."""

    factor: int = 1
    broken: tuple[int, ...] = ()
    crash_at: int | None = None
    measured: list[int] = field(default_factory=list)
    name: str = "squares"

    def settings(self) -> Mapping[str, Any]:
        return {"factor": self.factor, "levels": (1, 2)}

    def measure(self, item: Number) -> Row:
        if item.value == self.crash_at:
            raise KeyboardInterrupt
        if item.value in self.broken:
            raise SampleError(f"{item.name}: unreadable")
        self.measured.append(item.value)
        return {"square": self.factor * item.value**2}

    def values(self, rows: Sequence[Row]) -> Iterator[Value]:
        yield "mean", sum(row["square"] for row in rows) / len(rows)


NUMBERS = [Number(value) for value in range(7)]


def test_rows_come_in_the_order_of_the_data_set() -> None:
    done = run(Squares(), NUMBERS)
    assert [row["square"] for row in done.rows] == [0, 1, 4, 9, 16, 25, 36]
    assert done.complete


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Squares(crash_at=4), NUMBERS, folder=tmp_path)
    rest = Squares()
    done = run(rest, NUMBERS, folder=tmp_path)
    assert rest.measured == [4, 5, 6]
    assert [row["square"] for row in done.rows] == [0, 1, 4, 9, 16, 25, 36]


def test_a_line_cut_short_by_a_crash_is_measured_again(tmp_path: Path) -> None:
    run(Squares(), NUMBERS, folder=tmp_path)
    [file] = tmp_path.glob("rows-*")
    file.write_text(file.read_text()[:-8])
    again = Squares()
    done = run(again, NUMBERS, folder=tmp_path)
    assert again.measured == [6]
    assert done.complete
    last = Squares()
    assert run(last, NUMBERS, folder=tmp_path).complete
    assert last.measured == []


def test_shards_together_are_the_whole(tmp_path: Path) -> None:
    parts = [Squares() for _ in range(3)]
    states = [run(part, NUMBERS, folder=tmp_path, shard=Shard(index, 3)).complete for index, part in enumerate(parts)]
    assert [part.measured for part in parts] == [[0, 3, 6], [1, 4], [2, 5]]
    assert states == [False, False, True]
    together = run(Squares(), NUMBERS, folder=tmp_path)
    assert together.rows == run(Squares(), NUMBERS).rows


def test_rows_of_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    run(Squares(factor=1), NUMBERS, folder=tmp_path)
    with pytest.raises(ValueError, match=r"rows of other settings \(factor: there 1, now 2\).*another output folder"):
        run(Squares(factor=2), NUMBERS, folder=tmp_path)


def test_rows_of_another_data_set_are_not_mixed_in(tmp_path: Path) -> None:
    run(Squares(), NUMBERS, folder=tmp_path, data="odd")
    with pytest.raises(ValueError, match=r"data: there 'odd', now 'even'"):
        run(Squares(), NUMBERS, folder=tmp_path, data="even")


def test_an_unreadable_image_is_skipped_and_named(tmp_path: Path) -> None:
    many = [Number(value) for value in range(20)]
    done = run(Squares(broken=(3,)), many, folder=tmp_path)
    assert done.skipped == ("3.png: unreadable",)
    assert len(done.rows) == 19
    assert done.complete
    again = Squares(broken=(3,))
    assert run(again, many, folder=tmp_path).skipped == ("3.png: unreadable",)
    assert again.measured == []


def test_an_image_that_was_repaired_is_measured_by_the_next_run(tmp_path: Path) -> None:
    many = [Number(value) for value in range(20)]
    run(Squares(broken=(3,)), many, folder=tmp_path, shard=Shard(1, 2))
    repaired = Squares()
    done = run(repaired, many, folder=tmp_path)
    assert repaired.measured == [0, 2, 3, *range(4, 20, 2)]
    assert (len(done.rows), done.skipped) == (20, ())
    last = Squares(broken=(3,))
    assert len(run(last, many, folder=tmp_path).rows) == 20
    assert last.measured == []


def test_too_many_unreadable_images_end_the_run_and_the_next_one(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="1 of 7 samples cannot be used"):
            run(Squares(broken=(1, 2)), NUMBERS, folder=tmp_path)


def test_a_first_line_cut_short_by_a_crash_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "rows-squares-0of1.jsonl").write_text('{"settings": {"da')
    assert run(Squares(), NUMBERS, folder=tmp_path).complete
    last = Squares()
    assert run(last, NUMBERS, folder=tmp_path).complete
    assert last.measured == []


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="the data set is empty"):
        run(Squares(), [])


def test_two_images_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two images of the data set have the name '5\.png'"):
        run(Squares(), [Number(5), Number(5)])


@pytest.mark.parametrize("text", ["2/2", "1", "a/3", "-1/3", "0/0"])
def test_a_shard_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="shard must be i/n"):
        Shard.parse(text)
