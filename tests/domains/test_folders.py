"""Folders of images: every kind of wrong tree has a message of its own; labels; limits."""

import pickle
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset

import dgprune_lite as dg
from dgprune_lite.domains import ImageDomain, MultipleEnvironmentImageFolder, fetch

SETTINGS = {"image_size": 16}


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dg.draw_tiny_pacs(tmp_path_factory.mktemp("drawn"), images_per_class=3, size=16)


@pytest.fixture
def root(drawn: Path, tmp_path: Path) -> Path:
    """A tree that a test may damage."""
    return Path(shutil.copytree(drawn, tmp_path / "PACS"))


def domain(data: MultipleEnvironmentImageFolder, env: str) -> ImageDomain:
    found = data[env]
    assert isinstance(found, ImageDomain)
    return found


# --- A whole tree -------------------------------------------------------------------------


def test_names_shapes_and_labels(drawn: Path) -> None:
    data = dg.PACS(drawn, image_size=20)
    assert tuple(data) == data.ENVIRONMENTS == ("A", "C", "P", "S")
    assert (data.num_classes, data.input_shape, data.left_out) == (7, (3, 20, 20), ())
    assert repr(data) == "PACS(A 21, C 21, P 21, S 21; 7 classes, images 3×20×20)"
    for env in data:
        images, labels = fetch(data[env], range(21))
        assert images.shape == (21, 3, 20, 20)
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert labels.bincount().tolist() == [3] * 7
        for source, label in zip(domain(data, env).sources, labels.tolist(), strict=True):
            assert Path(source).parent.name == data.class_names[label]
            assert Path(source).parent.parent.name == data.FOLDERS[env]


def test_root_may_be_the_folder_above(drawn: Path) -> None:
    above = dg.PACS(str(drawn.parent), **SETTINGS)
    assert domain(above, "P").sources == domain(dg.PACS(drawn, **SETTINGS), "P").sources


def test_folder_names_are_names_of_domains(drawn: Path) -> None:
    data = dg.PACS(drawn, **SETTINGS)
    assert data["art_painting"] is data["A"] is data[0]
    assert dg.leave_one_domain_out(data, "sketch", seed=0).test_env == "S"
    with pytest.raises(ValueError, match=r"no domain 'sketches'; expected one of A \(art_painting"):
        data["sketches"]
    with pytest.raises(ValueError, match=r"Did you mean 'cartoon'\?"):
        data["cartoons"]


def test_what_does_not_belong_to_the_data_set_is_passed_over(root: Path) -> None:
    (root / "splits").mkdir()
    (root / "photo" / "dog" / "list.txt").write_text("no image")
    assert repr(dg.PACS(root, **SETTINGS)).startswith("PACS(A 21, C 21, P 21, S 21;")


CLUTTER = [".cache", ".ipynb_checkpoints", "__MACOSX", "lost+found", "__pycache__", "@eaDir"]


@pytest.mark.parametrize("name", CLUTTER)
@pytest.mark.parametrize("where", [".", "photo", "photo/dog", "photo/dog/more"])
def test_what_systems_and_editors_leave_behind_is_passed_over(
    name: str, where: str, root: Path
) -> None:
    before = MultipleEnvironmentImageFolder(root, **SETTINGS)
    whole = root / "photo" / "dog" / "pic_001.jpg"
    (root / where / name).mkdir(parents=True)
    shutil.copy(whole, root / where / name / "pic_001-checkpoint.jpg")
    whole.with_name("._pic_001.jpg").write_bytes(b"what macOS keeps beside a file on other disks")
    after = MultipleEnvironmentImageFolder(root, **SETTINGS)
    assert repr(after) == repr(before)
    assert after.class_names == before.class_names
    assert domain(after, "photo").sources == domain(before, "photo").sources
    (root / "photo" / "dog" / "deeper").mkdir()  # while a folder of any other name is looked into
    shutil.copy(whole, root / "photo" / "dog" / "deeper")
    assert len(domain(MultipleEnvironmentImageFolder(root, **SETTINGS), "photo")) == 22


def test_sixteen_bits_and_sideways_photos_come_out_as_viewers_show_them(root: Path) -> None:
    folder = root / "photo" / "dog"
    for path in folder.iterdir():
        path.unlink()
    ramp = np.tile(np.linspace(0, 65535, 16).astype(np.uint16), (16, 1))
    Image.fromarray(ramp).save(folder / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    Image.fromarray((ramp // 257).astype(np.uint8)).save(folder / "b.png", exif=exif)
    images, _ = fetch(dg.PACS(root, **SETTINGS)["P"], [0, 1])
    straight, turned = (images[:, 0] * 0.229 + 0.485) * 255
    torch.testing.assert_close(straight, torch.arange(0.0, 256.0, 17).expand(16, 16))
    torch.testing.assert_close(turned, straight.T)


def test_images_without_a_range_are_named_with_the_reason(root: Path) -> None:
    Image.fromarray(np.ones((8, 8), dtype=np.float32)).save(root / "photo" / "dog" / "a.tiff")
    with pytest.raises(ValueError, match=r"dog.a\.tiff \(its values are floats .*16 bits\)"):
        dg.PACS(root, **SETTINGS)
    data = dg.PACS(root, **SETTINGS, check="none")
    with pytest.raises(ValueError, match=r"dog.a\.tiff \(its values are floats"):
        data["P"][0]


def test_own_folders_name_their_own_domains_and_classes(root: Path) -> None:
    shutil.rmtree(root / "cartoon")
    data = MultipleEnvironmentImageFolder(root, **SETTINGS)
    assert data.ENVIRONMENTS == ("art_painting", "photo", "sketch")
    assert data.class_names == dg.PACS.class_names  # which are in alphabetical order
    assert MultipleEnvironmentImageFolder.FOLDERS == {}
    assert data["sketch"] is data[2]
    shutil.rmtree(root / "photo" / "dog")
    with pytest.raises(
        FileNotFoundError, match=r"lacks images .* in the class folder 'photo/dog'.*another name"
    ):
        MultipleEnvironmentImageFolder(root)


@pytest.mark.parametrize(
    ("benchmark", "folders", "classes", "name"),
    [
        (dg.VLCS, "Caltech101 LabelMe SUN09 VOC2007", 5, "VLCS"),
        (dg.OfficeHome, "Art|Clipart|Product|Real World", 65, "office_home"),
        (
            dg.TerraIncognita,
            "location_100 location_38 location_43 location_46",
            10,
            "terra_incognita",
        ),
    ],
)
def test_the_other_benchmarks(
    benchmark: type[MultipleEnvironmentImageFolder],
    folders: str,
    classes: int,
    name: str,
    tmp_path: Path,
) -> None:
    shades = {}
    for place, folder in enumerate(folders.split("|" if "|" in folders else None)):
        for label, class_name in enumerate(benchmark.class_names):
            path = tmp_path / name / folder / class_name
            path.mkdir(parents=True)
            shades[place, label] = (60 * place, label, 7)
            Image.new("RGB", (9, 7), shades[place, label]).save(path / "a.png")
    data = benchmark(tmp_path, image_size=4)
    assert (data.num_classes, len(data)) == (classes, 4)
    assert data.class_names == tuple(sorted(data.class_names))  # as torchvision's ImageFolder
    for place, env in enumerate(data):
        for found, label in domain(data, env):
            shade = torch.tensor(shades[place, label])
            mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
            expected = (shade / 255 - mean) / std
            assert torch.allclose(found, expected[:, None, None].expand(3, 4, 4), atol=1e-5)


def test_domainbeds_environments() -> None:
    letters = [dg.PACS, dg.VLCS, dg.OfficeHome]
    assert ["".join(data.ENVIRONMENTS) for data in letters] == ["ACPS", "CLSV", "ACPR"]
    assert dg.TerraIncognita.ENVIRONMENTS == ("L100", "L38", "L43", "L46")


# --- Trees that are not as they should be -------------------------------------------------


def remove_all(root: Path) -> None:
    shutil.rmtree(root)


def empty(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def lose_a_domain(root: Path) -> None:
    shutil.rmtree(root / "sketch")


def lose_a_class(root: Path) -> None:
    shutil.rmtree(root / "cartoon" / "horse")


def lose_the_images_of_a_class(root: Path) -> None:
    for path in (root / "cartoon" / "horse").iterdir():
        path.unlink()


def rename_a_class(root: Path) -> None:
    (root / "photo" / "dog").rename(root / "photo" / "dogs")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (remove_all, FileNotFoundError, "PACS: there is no folder '.*PACS'"),
        (empty, FileNotFoundError, r"holds none of its domains \(folders found: none\)"),
        (lose_a_domain, FileNotFoundError, "lacks the domain 'sketch'; was it copied only in part"),
        (
            lose_a_class,
            FileNotFoundError,
            r"lacks images \(of \.jpg, .*\) in the class folder 'cartoon/horse'; was it copied",
        ),
        (
            lose_the_images_of_a_class,
            FileNotFoundError,
            r"lacks images \(of \.jpg, .*\) in the class folder 'cartoon/horse'; was it copied",
        ),
        (
            rename_a_class,
            ValueError,
            r"no such class: the folder 'photo/dogs' .*Did you mean 'dog'\? Rename or remove it",
        ),
    ],
)
def test_each_damage_has_its_own_message(
    damage: Callable[[Path], None], error: type[Exception], message: str, root: Path
) -> None:
    damage(root)
    with pytest.raises(error, match=message) as caught:
        dg.PACS(root, **SETTINGS)
    if error is FileNotFoundError:  # and says what is expected, and where to get it
        text = str(caught.value)
        assert f"{root}/\n    art_painting/  holds the folders dog, elephant, giraffe" in text
        assert "DomainBed" in text
        assert "PACS.from_hub()" in text


def test_a_typing_error_in_the_root_is_no_crash(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds none of its domains"):
        MultipleEnvironmentImageFolder(tmp_path)
    (tmp_path / "photo").mkdir()
    with pytest.raises(FileNotFoundError, match=r"images .* in 0 class folders; .*\? Expected"):
        MultipleEnvironmentImageFolder(tmp_path)


# --- Images that cannot be read -----------------------------------------------------------


def cut(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-60])
    return str(path)


def test_unreadable_images_are_reported_together(root: Path) -> None:
    bad = [cut(root / "photo" / "dog" / "pic_001.jpg"), cut(root / "sketch/house/pic_003.png")]
    with pytest.raises(ValueError, match="PACS has 2 unreadable images") as caught:
        dg.PACS(root, **SETTINGS)
    assert all(path in str(caught.value) for path in bad)


def test_unreadable_images_may_be_left_out(root: Path) -> None:
    bad = cut(root / "photo" / "dog" / "pic_001.jpg")
    with pytest.warns(UserWarning, match="leaves out the unreadable image .*pic_001"):
        data = dg.PACS(root, **SETTINGS, skip_unreadable=True)
    assert data.left_out == (bad,)
    assert repr(data).startswith("PACS(A 21, C 21, P 20, S 21;")
    assert fetch(data["P"], range(20))[1].bincount().tolist() == [2, *[3] * 6]


def test_damage_in_the_middle_is_found_by_the_full_check_or_when_met(root: Path) -> None:
    path = root / "sketch" / "house" / "pic_003.png"
    content = bytearray(path.read_bytes())
    middle = content.index(b"IDAT") + 8
    content[middle : middle + 4] = bytes(byte ^ 255 for byte in content[middle : middle + 4])
    path.write_bytes(content)
    data = dg.PACS(root, **SETTINGS)
    with pytest.raises(ValueError, match=r"1 of 21 images of domain 'S' cannot.*house.pic_003"):
        fetch(data["S"], range(21))
    with pytest.raises(ValueError, match=r"PACS has the unreadable image .*house.pic_003"):
        dg.PACS(root, **SETTINGS, check="full")


def test_no_check_takes_files_on_trust(root: Path) -> None:
    cut(root / "photo" / "dog" / "pic_001.jpg")
    assert len(domain(dg.PACS(root, **SETTINGS, check="none"), "P")) == 21
    with pytest.raises(ValueError, match=r"check is 'quik'; .*Did you mean 'quick'"):
        dg.PACS(root, check="quik")


def test_the_known_bad_sketch_is_no_reason_to_stop(root: Path) -> None:
    known = root / "sketch" / "dog" / "n02103406_4068-1.png"
    shutil.copy(root / "sketch" / "dog" / "pic_001.png", known)
    assert len(domain(dg.PACS(root, **SETTINGS), "S")) == 22  # readable: as in DomainBed
    cut(known)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = dg.PACS(root, **SETTINGS)
    assert (len(domain(data, "S")), data.left_out) == (21, (str(known),))
    cut(root / "photo" / "dog" / "pic_001.jpg")  # only the others are a reason
    with pytest.raises(ValueError, match=r"has the unreadable image '.*pic_001\.jpg \("):
        dg.PACS(root, **SETTINGS)


def test_a_domain_without_a_readable_image_is_named(root: Path) -> None:
    for path in (root / "photo").rglob("*.jpg"):
        path.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="leaves out 21 unreadable images .* and 11 more"),
        pytest.raises(ValueError, match="no readable image in the domain 'P'"),
    ):
        dg.PACS(root, **SETTINGS, skip_unreadable=True)


# --- Limits and splits --------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "counts"), [(14, [2] * 7), (9, [2, 2, 1, 1, 1, 1, 1])])
def test_a_limit_is_balanced(drawn: Path, limit: int, counts: list[int]) -> None:
    data = dg.PACS(drawn, **SETTINGS, limit=limit)
    for env in data:
        labels = Counter(domain(data, env).labels)
        assert [labels[k] for k in range(7)] == counts


def test_a_limit_is_drawn_from_a_seed(drawn: Path) -> None:
    def drawn_with(seed: int) -> list[str]:
        return list(domain(dg.PACS(drawn, **SETTINGS, limit=7, seed=seed), "A").sources)

    assert drawn_with(3) == drawn_with(3) != drawn_with(4)
    whole = dg.PACS(drawn, **SETTINGS, limit=1000)
    assert domain(whole, "A").sources == domain(dg.PACS(drawn), "A").sources


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"image_size": 0}, ValueError, "image_size is 0; expected a whole number of at least 1"),
        ({"image_size": 2.5}, TypeError, r"image_size is 2\.5; expected a whole number"),
        ({"limit": 0}, ValueError, "limit is 0"),
        ({"seed": -1}, ValueError, "seed is -1"),
    ],
)
def test_bad_settings(drawn: Path, settings: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dg.PACS(drawn, **settings)


def test_only_the_training_parts_are_augmented(drawn: Path) -> None:
    split = dg.leave_one_domain_out(dg.PACS(drawn, **SETTINGS), "P", seed=0)

    def augmented(part: object) -> bool:
        inner = part.dataset if isinstance(part, Subset) else part
        assert isinstance(inner, ImageDomain)
        return inner.augmented

    assert [augmented(split.train[env]) for env in split.train] == [True] * 3
    assert [augmented(split.val[env]) for env in split.val] == [False] * 3
    assert not augmented(split.target)
    plain = fetch(split.val["A"], range(4))[0]
    assert torch.equal(plain, fetch(split.val["A"], range(4))[0])


def test_a_split_comes_back_from_a_pickle(drawn: Path) -> None:
    split = dg.leave_one_domain_out(dg.PACS(drawn, **SETTINGS), "P", seed=0)
    again = pickle.loads(pickle.dumps(split))
    for one, two in zip(
        fetch(split.train["A"], range(5)), fetch(again.train["A"], range(5)), strict=True
    ):
        assert torch.equal(one, two)


def test_the_whole_path_runs_on_folders(drawn: Path) -> None:
    split = dg.leave_one_domain_out(dg.PACS(drawn, image_size=32), "P", seed=0)
    weights = []
    for _ in range(2):
        model = dg.build_model("digits_resnet", num_classes=7, width=4, seed=0)
        state = torch.get_rng_state()
        history = dg.fit(model, split.train, steps=3, batch_size=4, seed=0)
        dg.recalibrate_batchnorm(model, split.train, images_per_domain=8, batch_size=12)
        assert torch.equal(torch.get_rng_state(), state)
        weights.append(model.state_dict())
    assert list(history.columns) == ["step", "loss", "A", "C", "S"]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    small, _ = dg.prune(model, split.train, criterion="risk_variance", pruning_ratio=0.5)
    assert list(dg.evaluate(small, split)["domain"]) == ["A", "C", "S", "P"]
