import numpy as np
import pytest
import torch

from mink_decouple.decouple.pseudo_labels import PseudoLabels
from mink_decouple.decouple.pseudo_table import PseudoLabelTable


def draw(seed, n, classes):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(-1, classes, (n,), generator=generator)
    rounds = torch.randint(1, 3, (n,), generator=generator) * (label >= 0)
    confidence = torch.rand(n, generator=generator) * (label >= 0)
    return PseudoLabels(label, rounds.to(torch.uint8), confidence)


def clouds(classes=13):
    return [
        ("Area_1/office_1", draw(0, 40, classes)),
        ("Flur süd", draw(1, 7, classes)),
        ("empty", draw(2, 0, classes)),
    ]


def assert_same(found, expected):
    assert torch.equal(found.label, expected.label) and torch.equal(found.round, expected.round)
    torch.testing.assert_close(found.confidence, expected.confidence, atol=0.5 / 255 + 1e-6, rtol=0)
    assert (found.label.dtype, found.round.dtype, found.confidence.dtype) == (torch.int64, torch.uint8, torch.float32)


@pytest.mark.parametrize("classes", [1, 13, 85, 86, 255, 300])
def test_labels_survive_the_table_and_the_file(tmp_path, classes):
    table = PseudoLabelTable(classes, clouds(classes))
    digest = table.save(tmp_path / "pseudo_labels" / "iter_00.npz")
    loaded = PseudoLabelTable.load(tmp_path / "pseudo_labels" / "iter_00.npz")
    assert list(loaded) == [name for name, _ in clouds(classes)] and loaded.classes == classes
    for name, expected in clouds(classes):
        assert_same(table[name], expected)
        assert_same(loaded[name], expected)
    assert loaded.save(tmp_path / "again.npz") == digest


@pytest.mark.parametrize(("classes", "size"), [(19, 2), (85, 2), (86, 3)])
def test_a_point_takes_two_bytes(classes, size):
    table = PseudoLabelTable(classes, [("a", draw(0, 1000, classes))])
    assert sum(column.nbytes for column in table.packed("a")) == size * 1000


def test_a_table_goes_from_hand_to_hand_packed():
    table = PseudoLabelTable(13, clouds())
    again = PseudoLabelTable.of_packed(13, ((name, table.packed(name)) for name in table))
    assert again.checksum == table.checksum


def test_an_empty_table_survives_the_file(tmp_path):
    PseudoLabelTable(13).save(tmp_path / "t.npz")
    assert len(PseudoLabelTable.load(tmp_path / "t.npz")) == 0


def test_counts_are_those_of_the_labels():
    table = PseudoLabelTable(13, clouds())
    label = torch.cat([labels.label for _, labels in clouds()])
    rounds = torch.cat([labels.round for _, labels in clouds()])
    for row in (1, 2):
        assert torch.equal(table.counts()[row - 1], torch.bincount(label[rounds == row], minlength=13))


def test_what_the_table_returns_does_not_share_memory_with_it():
    table = PseudoLabelTable(13, clouds())
    table["Flur süd"].label.fill_(3)
    table["Flur süd"].round.fill_(0)
    assert_same(table["Flur süd"], clouds()[1][1])


def test_the_file_needs_no_pickle_and_no_partial_file_stays(tmp_path):
    PseudoLabelTable(13, clouds()).save(tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz", allow_pickle=False) as file:
        assert all(file[key].dtype != object for key in file.files)
    assert [path.name for path in tmp_path.iterdir()] == ["t.npz"]


def test_changed_content_is_refused(tmp_path):
    path = tmp_path / "t.npz"
    PseudoLabelTable(13, clouds()).save(path)
    with np.load(path) as file:
        arrays = {key: file[key].copy() for key in file.files}
    arrays["label"][3] = (arrays["label"][3] + 1) % 13
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=r"t\.npz: content does not match its checksum"):
        PseudoLabelTable.load(path)


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "other"])
def test_a_damaged_or_foreign_file_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "t.npz"
    PseudoLabelTable(13, clouds()).save(path)
    if damage == "other":
        np.savez(path, mask=np.zeros(3))
    else:
        content = path.read_bytes()
        path.write_bytes({"cut": content[: len(content) // 2], "text": b"labels\n1 2 3\n", "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"t\.npz: not a readable table of pseudo-labels"):
        PseudoLabelTable.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*iter_07\.npz"):
        PseudoLabelTable.load(tmp_path / "iter_07.npz")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "t.npz"
    digest = PseudoLabelTable(13, clouds()).save(path)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        PseudoLabelTable(13).save(path)
    monkeypatch.undo()
    assert PseudoLabelTable.load(path).save(tmp_path / "u.npz") == digest
    assert {p.name for p in tmp_path.iterdir()} == {"t.npz", "u.npz"}


def test_wrong_content_is_refused():
    with pytest.raises(ValueError, match="cloud 'a' occurs twice"):
        PseudoLabelTable(13, [("a", draw(0, 3, 13)), ("a", draw(1, 3, 13))])
    with pytest.raises(ValueError, match=r"pseudo-labels of 'a': labels .*, expected -1\.\.1"):
        PseudoLabelTable(2, [("a", draw(0, 40, 13))])
