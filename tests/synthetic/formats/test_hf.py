import json
import sys

import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml

from fastdistill.synthetic.formats import hf
from fastdistill.synthetic.formats.card import card_text
from fastdistill.synthetic.formats.eight_bit import decode_png, to_levels
from fastdistill.synthetic.formats.hf import COLUMNS, TABLE_FILE
from fastdistill.synthetic.load import load


def test_what_is_written_is_read_exactly(kind, difference, tmp_path):
    hf.write(kind, tmp_path, "card")
    assert difference(load(tmp_path), kind) == []


def test_the_table_is_never_read(kind, difference, tmp_path, monkeypatch):
    hf.write(kind, tmp_path, "card")
    (tmp_path / TABLE_FILE).write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert difference(load(tmp_path), kind) == []


def test_the_table_holds_pictures_and_labels(build, tmp_path):
    distilled = build(runs=2)
    hf.write(distilled, tmp_path, "card")
    table = pyarrow.parquet.read_table(tmp_path / TABLE_FILE)
    assert tuple(table.column_names) == COLUMNS
    assert len(table) == 36
    for row in table.to_pylist():
        run, index = row["run"], row["index"]
        assert row["image"]["path"] is None
        assert torch.equal(decode_png(row["image"]["bytes"], (3, 4, 5)), to_levels(distilled)[run, index])
        assert row["label"] == int(distilled.labels[index])


def test_the_library_finds_its_features(build, tmp_path):
    distilled = build()
    card = card_text(distilled, "hf")
    hf.write(distilled, tmp_path, card)
    schema = pyarrow.parquet.read_schema(tmp_path / TABLE_FILE)
    kept = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    front = yaml.safe_load((tmp_path / "README.md").read_text().split("---")[1])
    listed = {feature["name"]: feature for feature in front["dataset_info"]["features"]}
    assert tuple(kept) == tuple(listed) == COLUMNS
    assert kept["image"] == {"_type": "Image"}
    assert listed["image"]["dtype"] == "image"
    names = kept["label"]["names"]
    assert len(set(names)) == 9  # the library refuses equal ones
    assert (names[0], names[1], names[8]) == ("cat (0)", "été ✨", "cat (8)")
    assert listed["label"]["dtype"]["class_label"]["names"] == {str(label): name for label, name in enumerate(names)}
    assert front["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]


@pytest.mark.parametrize("shape", [(18, 9), (2, 18, 9)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_table_holds_soft_labels(build, soft_rows, tmp_path, shape, dtype):
    distilled = build(runs=2, labels=soft_rows(*shape, dtype=dtype))
    hf.write(distilled, tmp_path, card_text(distilled, "hf"))
    table = pyarrow.parquet.read_table(tmp_path / TABLE_FILE)
    kind = "float64" if dtype == torch.float64 else "float32"
    assert tuple(table.column_names) == (*COLUMNS, "soft_label")
    rows = distilled.labels.double().expand(2, -1, -1)
    for row in table.to_pylist():
        assert row["soft_label"] == rows[row["run"], row["index"]].tolist()
        assert row["label"] == row["index"] // 2
    kept = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["soft_label"]
    assert kept == {"feature": {"dtype": kind, "_type": "Value"}, "length": -1, "_type": "Sequence"}
    front = yaml.safe_load((tmp_path / "README.md").read_text().split("---")[1])
    assert front["dataset_info"]["features"][-1] == {"name": "soft_label", "sequence": kind}


def test_equal_content_gives_equal_bytes(build, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        hf.write(build(runs=2), tmp_path / name, "card")
    assert (tmp_path / "a" / TABLE_FILE).read_bytes() == (tmp_path / "b" / TABLE_FILE).read_bytes()


def test_without_pyarrow_one_sentence_says_what_to_install(build, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for call in (lambda: hf.write(build(), tmp_path, "card"), hf.require_arrow):
        with pytest.raises(ValueError, match=r'found none: pip install "fastdistill\[hf\]"'):
            call()
    assert not list(tmp_path.iterdir())
