"""Metadata of real products: the XML, the name and the baseline say the same of the offset."""

from xml.etree import ElementTree

import pytest

from preprocess.radiometry import baseline_of, offset_of
from preprocess.sources.safe import offset_in


def metadata_of(real_data):
    return sorted((real_data / "sentinel2_safe").rglob("MTD_MSIL2A.xml"))


def test_every_real_product_states_the_offset_that_its_baseline_has(real_data):
    found = {}
    for path in metadata_of(real_data):
        baseline = baseline_of(path.parent.name)
        found[baseline] = offset_in(ElementTree.parse(path).getroot())
        assert found[baseline] == offset_of(baseline)
    assert found == {"02.12": 0, "02.14": 0, "04.00": -1000, "05.09": -1000}


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('band_id="3">-1000', 'band_id="3">-900', r"different offsets \[-1000, -900\]"),
        ('BOA_QUANTIFICATION_VALUE unit="none">10000', None, "BOA_QUANTIFICATION_VALUE is 1000"),
    ],
)
def test_a_product_of_another_unit_is_refused(real_data, old, new, reason):
    (path,) = [path for path in metadata_of(real_data) if "_N0400_" in str(path)]
    text = path.read_text()
    assert old in text
    changed = text.replace(old, new or old.removesuffix("0"))
    with pytest.raises(ValueError, match=reason):
        offset_in(ElementTree.fromstring(changed.encode()))
