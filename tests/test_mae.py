"""Masked autoencoding hides three quarters, learns, and its weights go into SAM's encoder at another size."""

import pytest
import torch
from torch import nn

from segment_anything.modeling.image_encoder import ImageEncoderViT
from segment_anything.modeling.mae import (
    MaskedAutoencoder,
    load_mae_weights,
    patches,
    resample_positions,
    sine_positions,
    visible_patches,
)
from segment_anything.modeling.nano import NanoEncoder


def vit(size: int = 64, seed: int = 0) -> ImageEncoderViT:
    torch.manual_seed(seed)
    encoder = ImageEncoderViT(
        img_size=size, patch_size=8, embed_dim=32, depth=2, num_heads=2, out_chans=8, use_rel_pos=True, window_size=2
    )
    nn.init.normal_(encoder.pos_embed, std=0.1)
    return encoder


def autoencoder() -> MaskedAutoencoder:
    return MaskedAutoencoder(vit(), decoder_dim=32, decoder_depth=1, decoder_heads=2)


def test_three_quarters_of_the_patches_are_hidden() -> None:
    shown = visible_patches(3, 64, 0.75, torch.Generator().manual_seed(0))
    assert shown.shape == (3, 16)
    assert all(len(set(row.tolist())) == 16 for row in shown)
    assert shown[0].tolist() != shown[1].tolist()


def test_patches_hold_their_pixels() -> None:
    images = torch.arange(3 * 4 * 6).view(1, 3, 4, 6).float()
    cut = patches(images, side=2)
    assert cut.shape == (1, 6, 12)
    assert torch.equal(cut[0, 4].view(2, 2, 3), images[0, :, 2:4, 2:4].permute(1, 2, 0))


def test_normalised_patches_have_mean_0_and_deviation_1() -> None:
    cut = patches(torch.randn(2, 3, 8, 8) * 9 + 4, side=4, normalised=True)
    torch.testing.assert_close(cut.mean(dim=2), torch.zeros(2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(cut.std(dim=2), torch.ones(2, 4), atol=1e-3, rtol=0)


def test_positions_of_all_cells_differ() -> None:
    table = sine_positions(5, 7, 16)
    assert table.shape == (35, 16)
    assert torch.cdist(table, table).add(torch.eye(35)).min() > 1e-2


def test_hidden_pixels_do_not_reach_the_encoder() -> None:
    model = autoencoder()
    images = torch.randn(1, 3, 64, 64)
    shown = visible_patches(1, 64, 0.75, torch.Generator().manual_seed(5))[0]
    other = images.clone()
    for index in set(range(64)) - set(shown.tolist()):
        row, column = divmod(index, 8)
        other[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 0
    latents = [
        model.encode_visible((model.encoder.patch_embed(x) + model.encoder.pos_embed).flatten(1, 2)[:, shown])
        for x in (images, other)
    ]
    assert torch.equal(*latents)


def test_loss_counts_hidden_patches_only() -> None:
    model = autoencoder()
    losses = [model(torch.ones(1, 3, 64, 64), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(losses[0], losses[1])
    with torch.no_grad():
        model.to_pixels.weight.zero_()
        model.to_pixels.bias.fill_(2.0)
    loss = model(torch.ones(1, 3, 64, 64))
    torch.testing.assert_close(loss, torch.tensor([4.0]))


def test_autoencoder_learns() -> None:
    model = autoencoder()
    ramp = torch.linspace(-2, 2, 64)
    images = torch.stack([ramp[None, :].expand(64, 64), ramp[:, None].expand(64, 64), ramp[None, :] * ramp[:, None]])[
        None
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        loss = model(images, generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_weights_go_into_an_encoder_of_another_size() -> None:
    trained = vit(32, seed=1)
    encoder = vit(64, seed=2)
    kept = load_mae_weights(encoder, trained.state_dict())
    assert torch.equal(encoder.blocks[1].attn.qkv.weight, trained.blocks[1].attn.qkv.weight)
    assert torch.equal(encoder.pos_embed, resample_positions(trained.pos_embed, 8))
    assert {name.split(".")[0] for name in kept} == {"blocks", "neck"}
    assert all("rel_pos" in name or name.startswith("neck") for name in kept)


def test_published_names_and_class_token_are_understood() -> None:
    trained = vit(64, seed=1)
    published = {
        name.replace("lin1", "fc1").replace("lin2", "fc2"): tensor
        for name, tensor in trained.state_dict().items()
        if "rel_pos" not in name and "neck" not in name
    }
    token = torch.full((1, 1, 32), 9.0)
    published["pos_embed"] = torch.cat([token, trained.pos_embed.detach().flatten(1, 2)], dim=1)
    published |= {"cls_token": token, "norm.weight": torch.ones(32)}
    encoder = vit(64, seed=2)
    load_mae_weights(encoder, published)
    assert torch.equal(encoder.pos_embed, trained.pos_embed)
    assert torch.equal(encoder.blocks[0].mlp.lin1.weight, trained.blocks[0].mlp.lin1.weight)


def test_weights_of_another_width_are_refused() -> None:
    other = ImageEncoderViT(img_size=64, patch_size=8, embed_dim=16, depth=2, num_heads=2, out_chans=8)
    with pytest.raises(ValueError, match=r"no MAE weights for this encoder: .* has shape"):
        load_mae_weights(vit(), other.state_dict())


def test_encoder_that_is_no_vit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a ViT encoder .* got NanoEncoder"):
        MaskedAutoencoder(NanoEncoder(64, 8, (8, 8, 16, 16), (1, 1, 1, 1), heads=2))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio must be between 0 and 1"),
        ({"decoder_dim": 30}, "decoder_dim must be a multiple"),
    ],
)
def test_bad_sizes_are_named(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MaskedAutoencoder(vit(), **options)
