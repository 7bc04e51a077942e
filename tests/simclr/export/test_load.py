"""An encoder is loaded for patches as they are, or refused with what to do."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from torch import nn

from simclr.export.load import load_encoder, read_card

BANDS = ["B04", "B03", "B02", "B08"]


def stored_patches(exported, batch=3):
    """Draw stored values (B, 4, 12, 12) around the card's means, with some nodata."""
    table = read_card(exported)["normalisation"]["arrays"]
    mean, std = (statistics(table, key) for key in ("mean", "std"))
    generator = torch.Generator().manual_seed(4)
    values = torch.randn(batch, 4, 12, 12, generator=generator) * std + mean
    values = values.round().clamp(min=1)
    values[0, :, :3] = 0
    return values


def statistics(table, key):
    return torch.tensor([table[band][key] for band in BANDS])[:, None, None]


def normalised(exported, patches):
    """Normalise as the page of the card says it."""
    table = read_card(exported)["normalisation"]["arrays"]
    views = (patches - statistics(table, "mean")) / statistics(table, "std")
    return torch.where(patches == 0, 0.0, views)


def test_bands_in_another_spelling_are_the_same_bands(exported):
    assert isinstance(load_encoder(exported, ["red", "B3", "blue", "nir"]), nn.Module)


def test_another_order_of_bands_stops_with_the_cure(exported):
    given = ["B02", "B03", "B04", "B08"]
    with pytest.raises(ValueError, match="another order") as caught:
        load_encoder(exported, given)
    order = json.loads(str(caught.value).split("patches[:, ")[1][:-1])
    assert [given[channel] for channel in order] == BANDS


@pytest.mark.parametrize(
    ("given", "message"),
    [(["B04", "B03", "B02"], "lack B08"), ([*BANDS, "B11"], "leave out B11")],
)
def test_missing_and_surplus_bands_stop_by_name(exported, given, message):
    with pytest.raises(ValueError, match=message):
        load_encoder(exported, given)


def test_weights_of_another_export_are_refused(exported, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    data = bytearray((copy / "encoder.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "encoder.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"is not the file that card\.json describes"):
        load_encoder(copy, BANDS)


def test_a_folder_without_a_card_or_with_a_foreign_one_stops(tmp_path):
    with pytest.raises(ValueError, match=r"holds no card\.json"):
        load_encoder(tmp_path, BANDS)
    (tmp_path / "card.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="this program reads"):
        load_encoder(tmp_path, BANDS)


def test_stored_values_and_reflectance_are_normalised_inside(exported):
    patches = stored_patches(exported)
    expected = load_encoder(exported, BANDS)(normalised(exported, patches))
    stored = load_encoder(exported, BANDS, unit="stored")(patches)
    reflectance = load_encoder(exported, BANDS, unit="reflectance", source="arrays")(patches / 1e4)
    torch.testing.assert_close(stored, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reflectance, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("said", "scale", "message"),
    [
        ("normalised", 1.0, "said to be normalised, but the median is"),
        ("stored", 1e-4, "said to be reflectance x 10000, but the median is 0"),
        ("reflectance", 1.0, "said to be reflectance, but the median is"),
    ],
)
def test_values_of_another_unit_stop_the_first_batch(exported, said, scale, message):
    encoder = load_encoder(exported, BANDS, unit=said)
    with pytest.raises(ValueError, match=message):
        encoder(stored_patches(exported) * scale)


def test_normalised_patches_are_no_stored_values(exported):
    views = normalised(exported, stored_patches(exported))
    with pytest.raises(ValueError, match="the lowest value -"):
        load_encoder(exported, BANDS, unit="stored")(views)


def test_normalised_patches_are_not_taken_for_reflectance(exported):
    views = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(3))
    with pytest.raises(ValueError, match=r"the lowest value -.* unit='normalised'"):
        load_encoder(exported, BANDS, unit="reflectance")(views)
    offset_left = 0.1 * views.abs() - 0.1  # of dark water, or of nodata
    assert load_encoder(exported, BANDS, unit="reflectance")(offset_left).isfinite().all()


def test_patches_with_nan_are_refused_and_empty_ones_are_not(exported):
    encoder = load_encoder(exported, BANDS, unit="stored")
    assert encoder(torch.zeros(1, 4, 12, 12)).isfinite().all()
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        load_encoder(exported, BANDS)(torch.full((1, 4, 12, 12), torch.nan))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 4, 24, 24), "are 24 x 24 px, the encoder expects 12 x 12.*size_px=24"),
        ((1, 3, 12, 12), r"have the shape \(1, 3, 12, 12\), the encoder reads \(batch, 4, 12, 12"),
        ((4, 12, 12), r"have the shape \(4, 12, 12\)"),
    ],
)
def test_every_batch_of_another_shape_stops(exported, shape, message):
    encoder = load_encoder(exported, BANDS)
    encoder(torch.zeros(1, 4, 12, 12))
    with pytest.raises(ValueError, match=message):
        encoder(torch.zeros(shape))


def test_another_size_is_taken_when_it_is_asked_for(exported):
    assert load_encoder(exported, BANDS, size_px=24)(torch.zeros(2, 4, 24, 24)).shape == (2, 512)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unit": "dn"}, "unit is 'dn'; choose one of normalised, stored, reflectance"),
        ({"unit": "stored", "source": "moon"}, "source is 'moon', the card has .* arrays"),
        ({"source": "arrays"}, "source='arrays' needs unit='stored' or 'reflectance'"),
    ],
)
def test_unknown_units_and_sources_name_the_known(exported, settings, message):
    with pytest.raises(ValueError, match=message):
        load_encoder(exported, BANDS, **settings)


def test_of_several_sources_one_must_be_named(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "copy")
    card = json.loads((tmp_path / "copy" / "card.json").read_text())
    card["normalisation"]["other"] = card["normalisation"]["arrays"]
    (tmp_path / "copy" / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"several sources; name the one .*: arrays, other"):
        load_encoder(tmp_path / "copy", BANDS, unit="stored")
    assert load_encoder(tmp_path / "copy", BANDS, unit="stored", source="other")


def test_a_subset_gives_the_same_activation_where_all_bands_are_equal(exported):
    one = torch.randn(2, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    whole = load_encoder(exported, BANDS)(one.expand(-1, 4, -1, -1)[:, :4])
    kernel = load_encoder(exported, BANDS).conv1.weight
    part = load_encoder(exported, ["B08", "B03"], subset=True)
    torch.testing.assert_close(part.conv1.weight, kernel[:, [3, 1]] * 2)
    assert part(one.expand(-1, 2, -1, -1)).shape == whole.shape


@pytest.mark.parametrize("given", [["B04", "B11"], [], ["B04", "B04"]])
def test_a_subset_holds_only_bands_of_the_encoder_each_once(exported, given):
    with pytest.raises(ValueError, match=r"a subset is some of B04, B03|named more than once"):
        load_encoder(exported, given, subset=True)


def test_a_loaded_encoder_can_be_copied_compiled_and_trained(exported):
    encoder = copy.deepcopy(load_encoder(exported, BANDS)).train().requires_grad_(True)
    encoder(torch.randn(2, 4, 12, 12)).sum().backward()
    assert encoder.conv1.weight.grad.abs().sum() > 0
    program = torch.export.export(load_encoder(exported, BANDS), (torch.randn(2, 4, 12, 12),))
    assert program.module()(torch.randn(2, 4, 12, 12)).shape == (2, 512)


def test_patches_of_another_processing_level_are_refused(exported, tmp_path):
    copy_of = shutil.copytree(exported, tmp_path / "copy")
    card = json.loads((copy_of / "card.json").read_text())
    card["processing_level"] = {"arrays": "L1C"}
    (copy_of / "card.json").write_text(json.dumps(card))
    assert load_encoder(copy_of, BANDS, processing_level="L1C")
    with pytest.raises(ValueError, match="the patches are L2A, the encoder was trained on L1C"):
        load_encoder(copy_of, BANDS, processing_level="L2A")
    with pytest.raises(ValueError, match="processing_level is '2A'; give L1C, L2A"):
        load_encoder(exported, BANDS, processing_level="2A")
