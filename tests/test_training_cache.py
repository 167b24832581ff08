"""Embeddings on disk: right for image and weights, memory-mapped, and honest about space. Estimates of memory."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_data
from toy_shapes import toy_nano

from segment_anything.architectures import assemble
from segment_anything.datasets import SampleError
from segment_anything.embedding import ImageEmbedding
from segment_anything.geometry import ImageGeometry
from segment_anything.training.embedding_cache import EmbeddingCache, Manifest
from segment_anything.training.files import SaveError
from segment_anything.training.finetune_options import PRESETS
from segment_anything.training.memory import estimate_memory
from segment_anything.training.prepare import checkpoint_blocks, choose_trained, encoder_blocks, set_drop_path
from segment_anything.training.sources import read_embedding, read_features


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 64, 3), dtype=np.uint8)


def test_cached_embedding_is_that_of_the_image(tmp_path: Path) -> None:
    sam = toy_nano()
    path = EmbeddingCache(tmp_path, sam).ensure(image())
    with torch.inference_mode():
        fresh = sam.encode(image()).features
    assert torch.equal(read_embedding(str(path)).features, fresh)


def test_half_precision_is_nearly_the_same_and_half_the_size(tmp_path: Path) -> None:
    sam = toy_nano()
    whole, half = (EmbeddingCache(tmp_path, sam, half=flag).ensure(image()) for flag in (False, True))
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    torch.testing.assert_close(
        read_embedding(str(half)).features, read_embedding(str(whole)).features, rtol=1e-2, atol=1e-2
    )


def test_other_images_and_other_weights_have_other_files(tmp_path: Path) -> None:
    caches = [EmbeddingCache(tmp_path, toy_nano(seed=seed)) for seed in (0, 0, 1)]
    paths = [cache.path(image()) for cache in caches]
    assert paths[0] == paths[1] != paths[2]
    assert caches[0].path(image(1)) != paths[0]


def test_embeddings_are_memory_mapped(tmp_path: Path) -> None:
    for number in range(4):
        features = torch.randn(1, 256, 100, 100)  # 10 MB
        ImageEmbedding(features, ImageGeometry((9, 9), 100), "toy", "w", "i").save(tmp_path / f"{number}.safetensors")
    before = anonymous_bytes()
    kept = [read_features(str(path)) for path in tmp_path.iterdir()]
    assert sum(float(features.sum()) for features in kept) != 0
    assert anonymous_bytes() - before < 4e6


def anonymous_bytes() -> float:
    """Memory of this process that no file stands for."""
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("needs Linux's /proc")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024.0


def test_damaged_embedding_is_named_with_the_cure(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"half")
    for read in (read_embedding, read_features):
        with pytest.raises(SampleError, match=r"x.safetensors cannot be read .*; delete it and start again"):
            read(str(path))


def test_a_run_that_goes_on_does_not_read_images_again(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "cache", toy_nano())
    picture = tmp_path / "a.png"
    toy_data.save(picture, image())
    Manifest(cache).note(picture, cache.ensure(image()), (40, 64))
    again = Manifest(cache, rank=1)
    assert again.find(picture) == (cache.path(image()), (40, 64))
    toy_data.save(picture, image(1))
    assert again.find(picture) is None
    toy_data.save(picture, image())
    cache.path(image()).unlink()
    assert Manifest(cache).find(picture) is None


def test_half_a_line_of_a_killed_process_is_passed_over(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "cache", toy_nano())
    picture = tmp_path / "a.png"
    toy_data.save(picture, image())
    Manifest(cache).note(picture, cache.ensure(image()), (40, 64))
    with open(cache.folder / "images-0.jsonl", "a") as file:
        file.write('{"image": "/so')
    assert Manifest(cache).find(picture) is not None


def test_too_small_a_disk_is_noticed_at_once(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, toy_nano())
    cache.check_space(10)
    with pytest.raises(SaveError, match=r"the embeddings of \d+ images need .* GB are free.*--cache-half"):
        cache.check_space(10**12)


def test_threads_may_share_a_cache(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, toy_nano())
    threads = [threading.Thread(target=cache.ensure, args=(image(seed % 2),)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    assert not list(tmp_path.rglob("*.part"))


# ---- what is prepared ---------------------------------------------------------------------------------------


def test_blocks_of_every_encoder_are_found() -> None:
    counts = {name: len(encoder_blocks(assemble(name).image_encoder)) for name in ("nano", "vit_t")}
    assert counts == {"nano": 11, "vit_t": 12}
    with torch.device("meta"):
        assert len(encoder_blocks(assemble("vit_b").image_encoder)) == 12


def test_drop_path_grows_to_the_last_block_of_a_vit() -> None:
    with torch.device("meta"):
        encoder = assemble("vit_b").image_encoder
    set_drop_path(encoder, 0.4)
    rates = [block.drop_path for block in encoder.blocks]
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0.4)
    assert rates == sorted(rates)


def test_drop_path_of_another_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="drop_path is for the ViT encoders, not for NanoEncoder"):
        set_drop_path(toy_nano().image_encoder, 0.1)


# ---- estimates ----------------------------------------------------------------------------------------------


def test_estimate_sees_what_autograd_keeps() -> None:
    sam = toy_nano()
    choose_trained(sam, "all", 8)
    total = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        if id(tensor.untyped_storage()._cdata) not in seen:
            total += tensor.untyped_storage().nbytes()
        return tensor

    seen: set[int] = set()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        sam.image_encoder(torch.randn(3, 3, 64, 64))
    estimate = estimate_memory(sam, batch_size=3, objects=2, precision="fp32")
    parameters = sum(p.numel() for p in sam.parameters()) * 4
    assert estimate.weights == estimate.gradients == parameters
    assert estimate.optimizer == 2 * parameters
    assert 0.5 * total < estimate.encoder <= total  # here some storages are counted twice, and the weights


def test_estimate_grows_with_what_is_asked_for() -> None:
    sam = toy_nano()
    choose_trained(sam, "all", 8)
    one, more, half = (
        estimate_memory(sam, batch_size=size, objects=size, precision=precision)
        for size, precision in ((1, "fp32"), (4, "fp32"), (4, "bf16"))
    )
    assert more.encoder == pytest.approx(4 * one.encoder, rel=0.05)
    assert more.decoder > 3 * one.decoder
    assert more.working == pytest.approx(0.5 * (more.encoder + more.decoder), abs=1)
    assert half.total < more.total
    choose_trained(sam, "decoder", 8)
    frozen = estimate_memory(sam, batch_size=4, objects=4, precision="fp32")
    assert frozen.encoder == 0
    assert frozen.optimizer < more.optimizer


@pytest.mark.parametrize("name", ["8gb", "16gb", "80gb"])
def test_vit_b_fits_the_presets(name: str) -> None:
    preset = PRESETS[name]
    with torch.device("meta"):
        sam = assemble("vit_b")
    choose_trained(sam, preset.train, 8)
    if preset.checkpointing:
        checkpoint_blocks(sam.image_encoder)
    estimate = estimate_memory(sam, batch_size=preset.batch_size, objects=preset.objects, precision=preset.precision)
    assert 0.5e9 < estimate.total < 0.8 * preset.memory_gb * 1e9
    assert "GiB (weights" in str(estimate)
