import contextlib
import io
import warnings
import zipfile

import pytest
import torch

from fastdistill.synthetic.formats.tensor_file import plain_tensor, read_tensors


class Payload:
    """Would make a file when unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_tensors_and_plain_containers_are_read(tmp_path):
    torch.save({"data": [[torch.ones(2), torch.zeros(1)]], "accs_all_exps": {"ConvNet": [0.5]}}, tmp_path / "a.pt")
    found = read_tensors(tmp_path / "a.pt")
    assert found["accs_all_exps"] == {"ConvNet": [0.5]}
    assert torch.equal(found["data"][0][0], torch.ones(2))


def test_code_is_refused_and_not_run(tmp_path):
    torch.save({"data": Payload(tmp_path / "touched")}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="holds something else, such as code") as caught:
        read_tensors(tmp_path / "a.pt")
    assert not (tmp_path / "touched").exists()
    assert "\n" not in str(caught.value)


def test_compressed_archives_are_refused_unread(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    torch.save(torch.zeros(1 << 20), buffer)
    with zipfile.ZipFile(buffer) as stored, zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    assert (tmp_path / "a.pt").stat().st_size < 20_000
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(ValueError, match="it is compressed"):
        read_tensors(tmp_path / "a.pt")


def test_overlapping_entries_are_refused_unread(tmp_path, monkeypatch):
    torch.save(torch.zeros(1000), tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        size = max(entry.file_size for entry in archive.infolist())
    claimed = (1 << 30).to_bytes(4, "little")
    assert content.count(size.to_bytes(4, "little")) >= 2
    content = content.replace(size.to_bytes(4, "little"), claimed)
    (tmp_path / "a.pt").write_bytes(content)
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(ValueError, match="its parts are larger than itself"):
        read_tensors(tmp_path / "a.pt")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}.", b"not a tensor"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"expected tensors in a\.pt, got a file that is missing, damaged"):
        read_tensors(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"expected tensors in b\.pt"):
        read_tensors(tmp_path / "b.pt")


def test_every_truncation_is_refused(tmp_path):
    torch.save(torch.arange(6.0), tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    for cut in range(0, len(whole) - 1, 37):
        (tmp_path / "cut.pt").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="expected tensors in"):
            read_tensors(tmp_path / "cut.pt")


@pytest.mark.parametrize(
    "value",
    [
        3,
        None,
        [torch.zeros(1)],
        torch.zeros(3, 3).to_sparse(),
        torch.zeros(2, device="meta"),
        torch.zeros(1).expand(10**6, 10**6),
    ],
    ids=str,
)
def test_what_is_no_plain_tensor_is_refused(value):
    with pytest.raises(ValueError, match="expected images"):
        plain_tensor(value, "images")


def test_a_tensor_that_claims_more_than_it_has_is_not_believed(tmp_path):
    torch.save(torch.zeros(1).expand(10**6, 10**6), tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 3000
    with pytest.raises(ValueError, match="expected images to hold its 1000000000000 values"):
        plain_tensor(read_tensors(tmp_path / "a.pt"), "images")


def test_damage_that_makes_torch_warn_is_only_refused(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "x.pt")
    content = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(content.replace(b"\x80\x02c", b"\x80\x00c", 1))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with contextlib.suppress(ValueError):
            read_tensors(tmp_path / "x.pt")
    assert [str(warning.message) for warning in warned] == []
