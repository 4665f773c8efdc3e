"""Lists of pairs: every form, and every fault by file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from facepipe.core.errors import DataError, FacepipeError, UsageError
from facepipe.evaluation.metrics.verification import PhotoPair
from facepipe.evaluation.pair_lists import (
    find_lfw_photos,
    read_lfw_pairs,
    read_pair_list,
    read_pair_lists,
)

TWO_FOLDS = "2 1\nAnn\t1\t12\nAnn\t1\tBob Lee\t3\nBob Lee\t2\t3\nCy\t4\tAnn\t1\n"


def _file(folder: Path, text: str) -> Path:
    file = folder / "pairs.txt"
    file.write_text(text, encoding="utf-8")
    return file


def test_pairs_of_both_forms(tmp_path: Path) -> None:
    assert read_lfw_pairs(_file(tmp_path, TWO_FOLDS)) == (
        PhotoPair("Ann/Ann_0001", "Ann/Ann_0012", True, 0),
        PhotoPair("Ann/Ann_0001", "Bob Lee/Bob Lee_0003", False, 0),
        PhotoPair("Bob Lee/Bob Lee_0002", "Bob Lee/Bob Lee_0003", True, 1),
        PhotoPair("Cy/Cy_0004", "Ann/Ann_0001", False, 1),
    )


def test_blanks_and_a_header_of_one_number(tmp_path: Path) -> None:
    pairs = read_lfw_pairs(_file(tmp_path, "1\r\nAnn 1 2\r\nAnn 1 Bob 3\r\n\r\n"))
    assert [(pair.same_person, pair.fold) for pair in pairs] == [(True, 0), (False, 0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a header"),
        ("one two\n", "expected a header"),
        ("1 2 3\n", "expected a header"),
        ("1 1\nAnn\t1\t2\n", "promises 1 folds of 2 x 1 pairs, 2 rows, but there are 1"),
        ("1 1\nAnn\t1\t2\nAnn\t1\n", "expected 3 or 4 columns, got 2"),
        ("1 1\nAnn\t1\tx\nAnn\t1\tBob\t2\n", "expected photo numbers in 'Ann"),
    ],
)
def test_bad_pairs_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"pairs\.txt: .*{message}"):
        read_lfw_pairs(_file(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt: can't read"):
        read_lfw_pairs(tmp_path / "none.txt")


def test_photos_are_found_in_any_format(tmp_path: Path) -> None:
    for name in ("Ann/Ann_0001.jpg", "Ann/Ann_0012.webp", "Bob Lee/Bob Lee_0002.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    keys = ("Ann/Ann_0001", "Ann/Ann_0012", "Bob Lee/Bob Lee_0002")
    assert [p.suffix for p in find_lfw_photos(tmp_path, keys).values()] == [".jpg", ".webp", ".png"]
    with pytest.raises(DataError, match="1 of 1 photos of the pairs are missing, as Cy/Cy_0001"):
        find_lfw_photos(tmp_path, ["Cy/Cy_0001"])


def _photos(folder: Path, *names: str) -> Path:
    """Empty files, which is all that a list needs."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_lfw_names_its_people(tmp_path: Path) -> None:
    names = ("Ann/Ann_0001.jpg", "Ann/Ann_0012.jpg", "Bob Lee/Bob Lee_0002.png", "Bob Lee/Bob Lee_0003.png")
    file = _file(_photos(tmp_path, *names, "Cy/Cy_0004.webp"), TWO_FOLDS)
    listed = read_pair_list(file, tmp_path)
    assert listed.pairs == read_lfw_pairs(file)
    assert listed.photos == find_lfw_photos(tmp_path, list(listed.photos))
    assert listed.people == {
        name.partition(".")[0]: name.partition("/")[0] for name in (*names, "Cy/Cy_0004.")
    }
    assert listed.name == tmp_path.name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pairs.txt", "a.jpg sub/b.jpg 1\n\n./a.jpg c.jpg 0\n"),
        ("pairs.txt", "a.jpg\tsub/b.jpg\t1\r\na.jpg\tc.jpg\t0\r\n"),
        ("pairs.txt", "first,second,same\na.jpg,sub/b.jpg,1\na.jpg,c.jpg,0\n"),
        ("pairs.csv", "a.jpg,sub/b.jpg,1\na.jpg,c.jpg,0\n"),
        ("pairs.csv", "same;note;second;first\n1;x;sub/b.jpg;a.jpg\n0;;c.jpg;a.jpg\n"),
    ],
)
def test_tables_of_photos(tmp_path: Path, name: str, text: str) -> None:
    images = _photos(tmp_path / "images", "a.jpg", "sub/b.jpg", "c.jpg")
    (tmp_path / name).write_text(text, encoding="utf-8")
    listed = read_pair_list(tmp_path / name, images)
    assert listed.pairs == (PhotoPair("a.jpg", "sub/b.jpg", True, 0), PhotoPair("a.jpg", "c.jpg", False, 0))
    assert listed.photos == {key: images / key for key in ("a.jpg", "c.jpg", "sub/b.jpg")}
    assert listed.people is None


def test_names_with_blanks_and_groups(tmp_path: Path) -> None:
    _photos(tmp_path, "a b.jpg", "c,d.jpg")
    file = tmp_path / "pairs.csv"
    file.write_text(
        'group,first,second,same\n0-5,a b.jpg,"c,d.jpg",1\n30+,a b.jpg,a b.jpg,0\n', encoding="utf-8"
    )
    assert read_pair_list(file, tmp_path).pairs == (
        PhotoPair("a b.jpg", "c,d.jpg", True, 0, "0-5"),
        PhotoPair("a b.jpg", "a b.jpg", False, 0, "30+"),
    )


def test_every_fold_has_its_share_of_each_group(tmp_path: Path) -> None:
    _photos(tmp_path, "a", "b")
    rows = [(same, group) for same in (1, 0) for group in ("x", "y") for _ in range(20)]
    file = tmp_path / "pairs.csv"
    lines = ["first,second,same,group", *(f"a,b,{same},{group}" for same, group in rows)]
    file.write_text("\n".join(lines), encoding="utf-8")
    folds = [pair.fold for pair in read_pair_list(file, tmp_path).pairs]
    assert folds == [k // 2 for _ in range(4) for k in range(20)]


def test_the_folds_of_a_list_in_the_order_of_folds_are_its_own(tmp_path: Path) -> None:
    """As AgeDB-30, CALFW and CPLFW are listed: per fold 300 pairs of one person, 300 of two."""
    _photos(tmp_path, "a", "b")
    file = _file(tmp_path, ("a b 1\n" * 300 + "a b 0\n" * 300) * 10)
    assert [pair.fold for pair in read_pair_list(file, tmp_path).pairs] == [i // 600 for i in range(6000)]


@pytest.mark.parametrize("folds", [True, False])
def test_the_lists_of_calfw_and_cplfw_are_read_as_they_are(tmp_path: Path, folds: bool) -> None:
    """CALFW numbers the folds of its pairs of one person; both have a pair on two lines."""
    names = ("Ann_Lee_0001.jpg", "Ann_Lee_0002.jpg", "Bo_1.jpg")
    same = [f"{name} {1 + i * folds}\r\n" for i in range(10) for _ in range(3) for name in names[:2]]
    different = [f"{name} 0\r\n" for _ in range(30) for name in names[1:]]
    listed = read_pair_list(_file(_photos(tmp_path, *names), "".join([*same, *different])), tmp_path)
    assert listed.pairs == (
        *(PhotoPair(*names[:2], True, i // 3) for i in range(30)),
        *(PhotoPair(*names[1:], False, i // 3) for i in range(30)),
    )
    assert listed.people is None


def test_few_pairs_have_few_folds(tmp_path: Path) -> None:
    _photos(tmp_path, "a", "b")
    file = _file(tmp_path, "a b 1\n" * 3 + "a b 0\n" * 8)
    assert [pair.fold for pair in read_pair_list(file, tmp_path).pairs] == [0, 1, 2, 0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("pairs.txt", "", "pairs.txt: names no pairs"),
        ("pairs.txt", "a b 2\n", "pairs.txt, line 1: expected 'path path 0' .* got 'a b 2'"),
        ("pairs.txt", "a b\n", "pairs.txt, line 1: expected 'path path 0'"),
        (
            "pairs.txt",
            "a b 1\n\na b\n",
            "pairs.txt, line 3: expected 3 columns, path path 0.1, got 2 in 'a b'",
        ),
        ("pairs.txt", "a b 1\na b x\n", "pairs.txt, line 2: expected 1 .one person. or 0 .two., got 'x'"),
        ("pairs.txt", "a b 1\na none.jpg 0\n", "pairs.txt, line 2: there is no photo .*none.jpg"),
        ("pairs.txt", "a b 1\na b 1\n", "pairs.txt: expected pairs of one person and pairs of two"),
        ("pairs.csv", "first,second,same\n", "pairs.csv: expected pairs of one person and pairs of two"),
        ("pairs.csv", "", "pairs.csv: expected pairs of one person and pairs of two"),
        ("pairs.txt", "0 300\n", "pairs.txt: expected pairs of one person and pairs of two"),
        (
            "pairs.csv",
            "first,second,same\na,b,1\na,b\n",
            "pairs.csv, line 3: expected first,second,same, got 'a,b'",
        ),
        (
            "pairs.csv",
            "first,second,same,group\na,b,1,\n",
            "pairs.csv, line 2: expected first,second,same,group",
        ),
        (
            "pairs.csv",
            "one,two,three\na,b,1\n",
            "pairs.csv, line 1: expected 1 .* got 'three'; columns are first,second,same",
        ),
        ("pairs.txt", "a 0\nb 0\na 1\n", "pairs.txt: expected two lines for each pair, got 3 lines"),
        ("pairs.txt", "a 1\nb 1\na 0\nb 1\n", "pairs.txt, line 3: expected 'path number' .* 'a 0' and 'b 1'"),
        ("pairs.txt", "a 1\nb 1\na b 0\nb 0\n", "pairs.txt, line 3: expected 'path number'"),
        ("pairs.txt", "a 1\nb 1\na 0\nnone 0\n", "pairs.txt, line 3: there is no photo .*none"),
        ("cfp_fp.bin", "", "cfp_fp.bin: such packs of faces are pickles, .*docs/measuring.md"),
        ("none.txt", None, "none.txt: can't read the list of pairs"),
        ("none.csv", None, "none.csv: can't read this CSV"),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    _photos(tmp_path, "a", "b")
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(FacepipeError, match=message):
        read_pair_list(tmp_path / name, tmp_path)


@pytest.fixture
def cfp(tmp_path: Path) -> Path:
    """CFP's layout with two people and two folds; photos are empty."""
    root = tmp_path / "cfp-dataset"
    lists = {}
    for side, pose, count in (("F", "frontal", 2), ("P", "profile", 1)):
        lists[side] = [f"{who}/{pose}/{n:02d}.jpg" for who in ("001", "002") for n in range(1, count + 1)]
        _photos(root / "Data" / "Images", *lists[side])
        lines = [f"{number} ../Data/Images/{path}" for number, path in enumerate(lists[side], 1)]
        _write(root / "Protocol" / f"Pair_list_{side}.txt", "\r\n".join(lines) + "\r\n")
    for split, same, diff in (("FF", "1,2", "1,3"), ("FP", "1,1", "1,2")):
        for fold, rows in (("01", (same, diff)), ("02", ("3,4" if split == "FF" else "4,2", "2,1"))):
            for name, row in zip(("same.txt", "diff.txt"), rows, strict=True):
                _write(root / "Protocol" / "Split" / split / fold / name, row + "\n")
    _write(root / "Protocol" / "Split" / "FF" / "02" / "diff.txt", "2, 4\n")
    return root


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


FF = [
    ("001/frontal/01.jpg", "001/frontal/02.jpg", True, 0),
    ("001/frontal/01.jpg", "002/frontal/01.jpg", False, 0),
    ("002/frontal/01.jpg", "002/frontal/02.jpg", True, 1),
    ("001/frontal/02.jpg", "002/frontal/02.jpg", False, 1),
]
FP = [
    ("001/frontal/01.jpg", "001/profile/01.jpg", True, 0),
    ("001/frontal/01.jpg", "002/profile/01.jpg", False, 0),
    ("002/frontal/02.jpg", "002/profile/01.jpg", True, 1),
    ("001/frontal/02.jpg", "001/profile/01.jpg", False, 1),
]


def test_the_whole_protocol_of_cfp(cfp: Path) -> None:
    listed = read_pair_list(cfp / "Protocol", cfp / "Data" / "Images")
    assert listed.pairs == (
        *(PhotoPair(*row, "frontal-frontal") for row in FF),
        *(PhotoPair(*row, "frontal-profile") for row in FP),
    )
    assert len(listed.photos) == 6
    assert all(path == cfp / "Data" / "Images" / key for key, path in listed.photos.items())
    assert listed.people == {key: key[:3] for key in listed.photos}
    assert listed.name == "cfp-dataset"


@pytest.mark.parametrize(("split", "rows"), [("FF", FF), ("FP", FP)])
def test_one_split_of_cfp(cfp: Path, split: str, rows: list[tuple[str, str, bool, int]]) -> None:
    listed = read_pair_list(cfp / "Protocol" / "Split" / split, cfp / "Data" / "Images")
    assert listed.pairs == tuple(PhotoPair(*row) for row in rows)
    assert listed.name == f"cfp-dataset-{split}"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "Split/FP/01/same.txt",
            "1,1\n1,3\n",
            r"same\.txt, line 2: photo 3 is not listed in Pair_list_P\.txt",
        ),
        ("Split/FP/01/same.txt", "1 1\n", r"same\.txt, line 1: expected two numbers, as 12,34, got '1 1'"),
        ("Split/FP/02/diff.txt", "1,2,1\n", r"diff\.txt, line 1: expected two numbers"),
        ("Pair_list_F.txt", "1 02.jpg\n", r"Pair_list_F\.txt, line 1: expected a number and"),
        (
            "Pair_list_F.txt",
            "one ../Data/Images/001/frontal/01.jpg\n",
            r"Pair_list_F\.txt, line 1: expected a number",
        ),
        (
            "Pair_list_P.txt",
            "1 ../Data/Images/001/profile/01.jpg\n2 ../Data/Images/003/profile/01.jpg\n",
            r"Pair_list_P\.txt, line 2: there is no photo .*003",
        ),
    ],
)
def test_bad_files_of_cfp_are_named(cfp: Path, file: str, text: str, message: str) -> None:
    _write(cfp / "Protocol" / file, text)
    with pytest.raises(DataError, match=message):
        read_pair_list(cfp / "Protocol", cfp / "Data" / "Images")


def test_folders_that_are_not_cfps(cfp: Path) -> None:
    images = cfp / "Data" / "Images"
    with pytest.raises(
        DataError, match="Data: expected CFP's folder Protocol, or Split/FF or Split/FP in it"
    ):
        read_pair_list(cfp / "Data", images)
    (cfp / "Protocol" / "Split" / "FP" / "01" / "same.txt").unlink()
    with pytest.raises(DataError, match=r"same\.txt: can't read"):
        read_pair_list(cfp / "Protocol", images)
    (cfp / "Other" / "Split" / "FP").mkdir(parents=True)
    for file in (cfp / "Protocol").glob("*.txt"):
        file.rename(cfp / "Other" / file.name)
    with pytest.raises(
        DataError, match=r"FP: expected folders 01 to 10 of same\.txt and diff\.txt, found none"
    ):
        read_pair_list(cfp / "Other" / "Split" / "FP", images)


def test_several_lists_are_called_by_their_files(tmp_path: Path, cfp: Path) -> None:
    _photos(tmp_path / "agedb", "a", "b")
    plain = "a b 1\na b 0\n"
    files = [
        cfp / "Protocol" / "Split" / "FF",
        cfp / "Protocol" / "Split" / "FP",
        tmp_path / "pairs_CALFW.txt",
    ]
    _write(files[-1], plain)
    files.append(_file(tmp_path / "agedb", plain))
    images = [cfp / "Data" / "Images"] * 2 + [tmp_path / "agedb"] * 2
    lists = read_pair_lists(files, images)
    assert [listed.name for listed in lists] == ["cfp-dataset-FF", "cfp-dataset-FP", "pairs_CALFW", "agedb"]
    assert lists == [read_pair_list(*both) for both in zip(files, images, strict=True)]
    assert read_pair_lists(files[2:], images[2:3]) == lists[2:]


def test_lists_that_can_not_stand_side_by_side(tmp_path: Path) -> None:
    first, second = (_photos(tmp_path / name / "agedb", "a", "b") for name in ("one", "two"))
    files = [_file(folder, "a b 1\na b 0\n") for folder in (first, second)]
    with pytest.raises(UsageError, match=r"pairs\.txt is named twice; name every list of pairs once"):
        read_pair_lists([files[0], first / ".." / "agedb" / "pairs.txt"], [first])
    with pytest.raises(
        UsageError, match=r"one/agedb/pairs\.txt and .*two/agedb/pairs\.txt: .* 'agedb'; rename one"
    ):
        read_pair_lists(files, [first])
    with pytest.raises(UsageError, match=r"one folder for all lists of pairs, or one for each .2. .* got 3"):
        read_pair_lists(files, [first, first, second])
    files[1].rename(second / "other.txt")
    (second / "b").unlink()
    with pytest.raises(DataError, match=r"other\.txt, line 1: there is no photo .*two/agedb/b"):
        read_pair_lists([files[0], second / "other.txt"], [first, second])
