"""Files too large to be carried at once: cut into folders of limited size, and put together again with their checksums.

python benchmarks/gpu/parts.py split FOLDER PARTS     PARTS/part-1, part-2, ... and PARTS/manifest.json
python benchmarks/gpu/parts.py join PARTS FOLDER      checks every sha256; says which parts are missing
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

LIMIT = 56 * 1024**2  # bytes of a part
MANIFEST = "manifest.json"


def split(source: Path, target: Path, limit: int = LIMIT) -> list[dict]:
    """Cut the files of a folder into parts of at most `limit` bytes each, and write the manifest.

    Args:
        source: a folder of files.
        target: is made anew; holds part-1, part-2, ... and the manifest.
        limit: bytes of a part.

    Returns:
        A row per file: name, bytes, sha256, and the pieces (part, file) that it is made of, in order.
    """
    shutil.rmtree(target, ignore_errors=True)
    rows, part, room = [], 0, 0
    for file in sorted(source.iterdir(), key=lambda path: (-path.stat().st_size, path.name)):
        content = file.read_bytes()
        pieces, at = [], 0
        while at < len(content):
            if room == 0:
                part, room = part + 1, limit
                (target / f"part-{part}").mkdir(parents=True)
            piece = content[at : at + room]
            name = f"{file.name}.{len(pieces)}"
            (target / f"part-{part}" / name).write_bytes(piece)
            pieces.append([f"part-{part}", name])
            at, room = at + len(piece), room - len(piece)
        digest = hashlib.sha256(content).hexdigest()
        rows.append({"name": file.name, "bytes": len(content), "sha256": digest, "pieces": pieces})
    (target / MANIFEST).write_text(json.dumps({"files": rows}, indent=1) + "\n")
    return rows


def join(source: Path, target: Path) -> list[Path]:
    """Put the files together again.

    Args:
        source: the folder with the parts and the manifest.
        target: where the files go; made if absent.

    Raises:
        SystemExit: a part is missing, or a file's checksum is not the manifest's.
    """
    rows = json.loads((source / MANIFEST).read_text())["files"]
    wanted = {part for row in rows for part, _ in row["pieces"]}
    missing = sorted(part for part in wanted if not (source / part).is_dir())
    if missing:
        sys.exit(f"{', '.join(missing)} not in {source}: carry them there, or make all parts anew with pack.sh.")
    target.mkdir(parents=True, exist_ok=True)
    made = []
    for row in rows:
        content = b"".join((source / part / name).read_bytes() for part, name in row["pieces"])
        if hashlib.sha256(content).hexdigest() != row["sha256"]:
            sys.exit(f"{row['name']} is damaged (its sha256 is not the manifest's): carry its parts again.")
        made.append(target / row["name"])
        made[-1].write_bytes(content)
    return made


if __name__ == "__main__":
    verb, first, second = sys.argv[1:]
    if verb == "split":
        total = sum(row["bytes"] for row in split(Path(first), Path(second)))
        parts = sorted(path.name for path in Path(second).glob("part-*"))
        print(f"{second}: {len(parts)} parts, {total / 1024**2:.0f} MiB in all")
    else:
        print(f"{second}: {len(join(Path(first), Path(second)))} files, every sha256 right")
