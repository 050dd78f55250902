"""COCO captions as a source: which pictures, which captions, and what is said of the rest."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spatialprobes.images import open_image
from spatialprobes.sources.coco import coco


@pytest.fixture
def folder(tmp_path):
    """Four pictures, five captions each, listed in no order; the second picture's file is not there."""
    (tmp_path / "val2017").mkdir()
    numbers = [139, 285, 632, 445658]
    for number in numbers:
        if number != 285:
            Image.new("RGB", (6, 4), (number % 256, 0, 0)).save(tmp_path / "val2017" / f"{number:012d}.jpg")
    write(
        tmp_path,
        [{"id": number, "file_name": f"{number:012d}.jpg", "license": 3} for number in reversed(numbers)],
        [
            {"id": 100 - i * 4 - j, "image_id": number, "caption": f" {number} no. {i} "}
            for i in range(5)
            for j, number in enumerate(numbers)
        ],
    )
    return tmp_path


def write(folder, images, annotations, **more):
    (folder / "captions.json").write_text(json.dumps({"info": {}, "images": images, "annotations": annotations, **more}))


def read(folder, **options):
    return coco(folder / "captions.json", folder / "val2017", **options)


def test_pictures_by_id_with_their_captions_in_the_annotations_order(folder):
    examples, problems = read(folder, question="Describe the image.")
    assert [one.id for one in examples] == ["000000000139", "000000000632", "000000445658"]
    assert [one.cluster for one in examples] == [one.id for one in examples]
    assert examples[0].meta == {
        "image_id": 139,
        "file_name": "000000000139.jpg",
        "captions": [f"139 no. {i}" for i in (4, 3, 2, 1, 0)],
    }
    assert {one.question for one in examples} == {"Describe the image."}
    assert isinstance(examples[0].image, Path) and open_image(examples[0].image).size == (6, 4)
    assert [(one.example, one.reason) for one in problems] == [("000000000285", "no such file")]
    assert "000000000285.jpg" in str(problems[0])


def test_nothing_is_opened_before_it_is_used(folder):
    (folder / "val2017" / "000000000139.jpg").write_bytes(b"no picture")
    assert len(read(folder)[0]) == 3


def test_limit_takes_the_first_or_a_seeded_choice(folder):
    assert [one.id[-3:] for one in read(folder, limit=2)[0]] == ["139", "632"]
    chosen = [tuple(one.id for one in read(folder, limit=2, seed=seed)[0]) for seed in range(20)]
    assert len(set(chosen)) == 3 and all(list(ids) == sorted(set(ids)) for ids in chosen)
    assert chosen[3] == tuple(one.id for one in read(folder, limit=2, seed=3)[0])
    assert len(read(folder, limit=9, seed=1)[0]) == 3
    with pytest.raises(ValueError, match="limit=0"):
        read(folder, limit=0)
    with pytest.raises(ValueError, match="seed=-1 is no seed"):
        read(folder, limit=2, seed=-1)


BAD_IMAGES = [
    ({"file_name": "a.jpg"}, "images[0]", "its id is None"),
    ({"id": True, "file_name": "a.jpg"}, "images[0]", "its id is True"),
    ({"id": -1, "file_name": "a.jpg"}, "images[0]", "its id is -1"),
    ({"id": 1}, "images[0]", "image 1 has no file name"),
    ({"id": 1, "file_name": "../secret.jpg"}, "images[0]", "leads out of the folder"),
    ({"id": 1, "file_name": "/etc/passwd"}, "images[0]", "leads out of the folder"),
    ({"id": 1, "file_name": "..\\secret.jpg"}, "images[0]", "leads out of the folder"),
    (7, "images[0]", "its id is None"),
]
BAD_CAPTIONS = [
    ({"id": 1, "caption": "x"}, "annotations[0]", "its ids are 1, None"),
    ({"id": 1, "image_id": 139}, "annotations[0]", "annotation 1 has no caption"),
    ({"id": 1, "image_id": 139, "caption": " \n"}, "annotations[0]", "annotation 1 has no caption"),
    ({"id": 1, "image_id": 4, "caption": "x"}, "annotations[0]", "annotation 1 is of an unknown image 4"),
    ("x", "annotations[0]", "its ids are None, None"),
]


@pytest.mark.parametrize(("list_name", "entry", "where", "reason"), [
    *(("images", *case) for case in BAD_IMAGES), *(("annotations", *case) for case in BAD_CAPTIONS)
])  # fmt: skip
def test_bad_entries_are_left_out_and_named(folder, list_name, entry, where, reason):
    content = json.loads((folder / "captions.json").read_text())
    good, problems = read(folder)
    content[list_name].insert(0, entry)
    write(folder, content["images"], content["annotations"])
    found, more = read(folder)
    assert found == good
    (new,) = [one for one in more if one not in problems]
    assert new.example == where and reason in new.reason and new.name == "captions.json"


def test_what_stands_twice_counts_once(folder):
    content = json.loads((folder / "captions.json").read_text())
    good, problems = read(folder)
    write(folder, content["images"] * 2, content["annotations"] * 2)
    found, more = read(folder)
    assert found == good
    assert sorted(one.reason for one in more if one not in problems) == sorted(
        [
            *(f"image {one['id']} stands twice" for one in content["images"]),
            *(f"annotation {one['id']} stands twice" for one in content["annotations"]),
        ]
    )


def test_a_file_counts_for_the_first_of_its_ids(folder):
    content = json.loads((folder / "captions.json").read_text())
    good, problems = read(folder)
    write(folder, [*content["images"], {"id": 7, "file_name": "./000000000139.jpg"}], content["annotations"])
    found, more = read(folder)
    assert found == good
    (new,) = [one for one in more if one not in problems]
    assert new.example == "images[4]" and new.reason == "image 7 has the file of image 139, './000000000139.jpg'"


def test_a_name_that_no_file_can_have_is_a_problem(folder):
    content = json.loads((folder / "captions.json").read_text())
    good, problems = read(folder)
    write(folder, [*content["images"], {"id": 7, "file_name": "a" * 5000}], content["annotations"])
    found, more = read(folder)
    assert found == good
    (new,) = [one for one in more if one not in problems]
    assert (new.example, new.reason) == ("000000000007", "File name too long")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{oops", "captions.json: not JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "captions.json: not JSON that can be read: nested too deep"),
        (b"[]", "no list 'images'; a COCO captions file has"),
        (b'{"images": []}', "no list 'annotations'"),
        (b'{"images": [], "annotations": {}}', "no list 'annotations'"),
        (b'{"images": [{"id": 1, "file_name": "gone.jpg"}], "annotations": []}', "none of its 1 pictures is in"),
    ],
)
def test_files_that_are_no_captions_are_refused(folder, content, message):
    (folder / "captions.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(folder)


def test_missing_files_and_folders_are_named(folder):
    with pytest.raises(FileNotFoundError, match=r"no captions file .*gone\.json"):
        coco(folder / "gone.json", folder / "val2017")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        coco(folder / "captions.json", folder / "train2017")
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        coco(folder / "captions.json", folder / "captions.json")


@settings(deadline=None, max_examples=20)
@given(numbers=st.sets(st.integers(0, 10**9), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_the_order_of_the_file_does_not_matter(tmp_path_factory, numbers, seed):
    folder = tmp_path_factory.mktemp("coco")
    (folder / "val2017").mkdir()
    for number in numbers:
        (folder / "val2017" / f"{number}.jpg").touch()
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in numbers]
    annotations = [{"id": place, "image_id": number, "caption": f"of {number}"} for place, number in enumerate(numbers)]
    shuffled = np.random.default_rng(seed).permutation(len(numbers))
    write(folder, [images[i] for i in shuffled], [annotations[i] for i in shuffled[::-1]])
    examples, problems = read(folder)
    assert [one.meta["image_id"] for one in examples] == sorted(numbers) and not problems
    assert [one.meta["captions"] for one in examples] == [[f"of {number}"] for number in sorted(numbers)]
