"""The photo benchmarks of the field, by DomainBed's names: PACS, VLCS, OfficeHome and others."""

from __future__ import annotations

import os
from typing import Self

from dgprune_lite.domains.folders import MultipleEnvironmentImageFolder
from dgprune_lite.domains.hub import open_hub

DOMAINBED = "https://github.com/facebookresearch/DomainBed (domainbed/scripts/download.py)"


class PACS(MultipleEnvironmentImageFolder):
    """Photos, art paintings, cartoons and sketches of seven things: 9991 images of 227×227.

    A: art_painting (2048 images), C: cartoon (2344), P: photo (1670), S: sketch (3929), in the
    folder ``PACS/``. See ``MultipleEnvironmentImageFolder`` for arguments and errors. One sketch is
    known to have errors; where it cannot be decoded, it is left out without a warning.

    Source: Li et al., "Deeper, broader and artier domain generalization", ICCV 2017.

    >>> import tempfile
    >>> from dgprune_lite import draw_tiny_pacs, leave_one_domain_out
    >>> with tempfile.TemporaryDirectory() as folder:  # small drawings in place of the images
    ...     pacs = PACS(draw_tiny_pacs(folder), image_size=64)
    >>> pacs
    PACS(A 28, C 28, P 28, S 28; 7 classes, images 3×64×64)
    >>> leave_one_domain_out(pacs, test_env="sketch", seed=0)
    Split(test_env='S', seed=0, sources: A 22+6, C 22+6, P 22+6)
    """

    FOLDERS = {"A": "art_painting", "C": "cartoon", "P": "photo", "S": "sketch"}  # noqa: RUF012
    ENVIRONMENTS = tuple(FOLDERS)
    class_names = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    ROOT = "PACS"
    WHERE = (
        f"{DOMAINBED}, or without any folder: PACS.from_hub() (pip install 'dgprune-lite[hub]'). "
        f"To go on without the data: draw_tiny_pacs(folder) draws a small stand-in"
    )
    KNOWN_DAMAGED = frozenset({"sketch/dog/n02103406_4068-1.png"})

    @classmethod
    def from_hub(
        cls,
        repository: str | os.PathLike[str] = "flwrlabs/pacs",
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        image_size: int = 224,
        limit: int | None = None,
        seed: int = 0,
    ) -> Self:
        """Open PACS from the Hugging Face hub, as from a folder up to the order of images.

        The first call of its library ``datasets`` (extra ``hub``) downloads about 200 MB.

        Args:
            repository: A data set of the hub, or a local folder with its parquet files. Its columns
                are image, domain (a folder's name, such as "art_painting") and label.
            revision: A branch, tag or commit of the repository; None for the newest.
            cache_dir: Where ``datasets`` keeps its files; None for its default.
            image_size: As for ``MultipleEnvironmentImageFolder``, also ``limit`` and ``seed``.

        Raises:
            ImportError: The library ``datasets`` is missing.
            ConnectionError: The hub cannot be reached and the cache does not have the images.
            ValueError: A column, a domain or a class is missing or unknown.
        """
        dataset = cls.__new__(cls)
        domains = open_hub(repository, revision, cache_dir, cls.FOLDERS, cls.class_names)
        dataset._hold(domains, image_size, limit, seed)
        return dataset


class VLCS(MultipleEnvironmentImageFolder):
    """Five things in four photo collections: 10 729 images.

    C: Caltech101 (1415 images), L: LabelMe (2656), S: SUN09 (3282), V: VOC2007 (3376), in the
    folder ``VLCS/``. Arguments and errors are those of ``PACS``.

    Source: Fang, Xu and Rockmore, "Unbiased metric learning: on the utilization of multiple
    datasets and web images for softening bias", ICCV 2013.
    """

    FOLDERS = {"C": "Caltech101", "L": "LabelMe", "S": "SUN09", "V": "VOC2007"}  # noqa: RUF012
    ENVIRONMENTS = tuple(FOLDERS)
    class_names = ("bird", "car", "chair", "dog", "person")
    ROOT = "VLCS"
    WHERE = DOMAINBED


class OfficeHome(MultipleEnvironmentImageFolder):
    """Things of office and home, 65 classes in four styles: 15 588 images.

    A: Art (2427 images), C: Clipart (4365), P: Product (4439), R: Real World (4357), in the folder
    ``office_home/``. Arguments and errors are those of ``PACS``.

    Source: Venkateswara et al., "Deep hashing network for unsupervised domain adaptation", CVPR
    2017.
    """

    FOLDERS = {"A": "Art", "C": "Clipart", "P": "Product", "R": "Real World"}  # noqa: RUF012
    ENVIRONMENTS = tuple(FOLDERS)
    class_names = tuple(
        """
        Alarm_Clock Backpack Batteries Bed Bike Bottle Bucket Calculator Calendar Candles Chair
        Clipboards Computer Couch Curtains Desk_Lamp Drill Eraser Exit_Sign Fan File_Cabinet
        Flipflops Flowers Folder Fork Glasses Hammer Helmet Kettle Keyboard Knives Lamp_Shade
        Laptop Marker Monitor Mop Mouse Mug Notebook Oven Pan Paper_Clip Pen Pencil Postit_Notes
        Printer Push_Pin Radio Refrigerator Ruler Scissors Screwdriver Shelf Sink Sneakers Soda
        Speaker Spoon TV Table Telephone ToothBrush Toys Trash_Can Webcam
        """.split()  # noqa: SIM905
    )
    ROOT = "office_home"
    WHERE = f"{DOMAINBED} or http://hemanthdv.org/OfficeHome-Dataset/"


class TerraIncognita(MultipleEnvironmentImageFolder):
    """Animals before the cameras of four places, ten classes: 24 330 images.

    L100: location_100 (4741 images), L38: location_38 (9736), L43: location_43 (3970), L46:
    location_46 (5883), in the folder ``terra_incognita/`` (DomainBed's tables are about 24 788).
    Arguments and errors are those of ``PACS``.

    Source: Beery, Van Horn and Perona, "Recognition in terra incognita", ECCV 2018; places and
    classes as chosen by DomainBed.
    """

    FOLDERS = {f"L{camera}": f"location_{camera}" for camera in (100, 38, 43, 46)}  # noqa: RUF012
    ENVIRONMENTS = tuple(FOLDERS)
    class_names = tuple(
        "bird bobcat cat coyote dog empty opossum rabbit raccoon squirrel".split()  # noqa: SIM905
    )
    ROOT = "terra_incognita"
    WHERE = f"{DOMAINBED} or https://lila.science/datasets/caltech-camera-traps"
