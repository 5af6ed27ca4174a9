#!/bin/bash
# Make old_cache.tar.gz and old_cache.json, which tests/integration/test_old_cache.py opens.
#
# This script ran with the code of commit 644940b. It stays only as documentation of how the fixture was made: commands
# of later versions may differ, and a fixture made by later code proves nothing about older caches. All media are test
# pictures of ffmpeg. All requests go to a server on the loopback address.
#
#   PYTHON=<python with the dependencies> PYTHONPATH=<checkout of 644940b> tests/support/make_old_cache.sh

set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
cache=$work/old/cache
trap 'kill "$site" 2>/dev/null || true; rm -rf "$work"' EXIT
export XDG_CONFIG_HOME=$work/none YTDLP_NO_PLUGINS=1 no_proxy=127.0.0.1

# Clips, their annotations, and archives of some of them.

clips=$work/clips
mkdir -p "$clips" "$work/old/archives/600/val" "$work/site/600/test" "$work/told"
hue=0
for clip in surfing__01_000000_000010 surfing__02_000005_000015 zumba____{01..14}_000000_000010 \
    archery__01_000000_000010 archery__02_000000_000010 -evicted_01_000000_000010 _fetched_01_000000_000010 \
    juggling_01_000000_000010 juggling_02_000000_000010 shared___01_000000_000010; do
    hue=$((hue + 13))
    ffmpeg -nostdin -loglevel error -f lavfi -i testsrc2=size=160x120:rate=8:duration=1 -vf "hue=h=$hue" \
        -c:v libx264 -crf 36 -pix_fmt yuv420p -movflags +faststart -fflags +bitexact "file:$clips/$clip.mp4"
done

cat > "$work/annotations.csv" <<'END'
label,youtube_id,time_start,time_end,split
surfing water,surfing__01,0,10,validate
surfing water,surfing__02,5,15,validate
surfing water,surfing__03,0,10,validate
archery,archery__01,0,10,train
archery,archery__02,0,10,train
archery,archery__03,0,10,train
spinning poi,-evicted_01,0,10,train
spinning poi,_fetched_01,0,10,train
juggling balls,juggling_01,0,10,train
juggling balls,juggling_02,0,10,train
yodeling,gone_____01,0,10,train
yodeling,trouble__01,0,10,train
yodeling,blocked__01,0,10,train
yodeling,account__01,0,10,train
yodeling,corrupt__01,0,10,train
not a clip,too-short,0,10,train
END
for number in {01..14}; do echo "zumba,zumba____$number,0,10,validate"; done >> "$work/annotations.csv"

(cd "$clips" && tar -c surfing__*.mp4) | gzip -n > "$work/old/archives/600/val/surfing water.tar.gz"
(cd "$clips" && tar -c zumba____*.mp4) | gzip -n1 > "$work/old/archives/600/val/zumba.tar.gz"
(cd "$clips" && tar -c shared___*.mp4) | gzip -n > "$work/site/600/test/part_1.tar.gz"

# A site with pages of videos that cannot be had and with one archive. As a proxy it also serves the annotations, at an
# address that no server answers at when the fixture is opened.

cat > "$work/site.py" <<'END'
import re, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

work = Path(sys.argv[1])


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path = re.sub("^http://[^/]*", "", self.path)
        if path == "/annotations.csv":
            return self.answer(200, (work / "annotations.csv").read_bytes(), {"ETag": '"annotations-1"'})
        if path.startswith("/600/"):
            content = (work / "site" / path[1:]).read_bytes()
            begin, end = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
            where = {"Content-Range": f"bytes {begin}-{end}/{len(content)}", "ETag": '"part-1"'}
            return self.answer(206, content[begin : end + 1], where)
        if "juggling" in path:
            time.sleep(600)
        if "blocked" in path:
            return self.answer(429, b"", {"Retry-After": "7200"})
        self.answer(503 if "trouble" in path else 404, b"", {})

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(body)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
Path(sys.argv[1], "port").write_text(str(server.server_port))
server.serve_forever()
END
"$python" "$work/site.py" "$work" 2> "$work/site.log" &
site=$!
until [ -s "$work/port" ]; do sleep 0.1; done
address=http://127.0.0.1:$(cat "$work/port")
annotations=http://127.0.0.1:1/annotations.csv

kinetics() { # kinetics <expected exit code> <arguments>
    local expected=$1 code=0
    shift
    (cd "$work" && "$python" -m kinetics_fs --config /dev/null "$@") || code=$?
    [ "$code" = "$expected" ] || { echo "kinetics-fs $*: exit code $code, not $expected" >&2; exit 1; }
}
store=(--cache-dir "$cache" --min-free 0)
all=(--annotations "$annotations" "${store[@]}")

# The annotations are downloaded once. All later commands use the copy in the cache.
(unset no_proxy && http_proxy=$address kinetics 0 failures report "${all[@]}")
held=$work/held
mkdir "$held"
take() { # take <glob>: of the clips, into the cache
    rm -f "$held"/*
    cp "$clips"/$1.mp4 "$held"
    kinetics 0 import "${all[@]}" --copy "$held"
}

# A clip that was evicted: the limit leaves no room for a second one.
take -evicted_01_000000_000010
rm "$held"/*
cp "$clips/_fetched_01_000000_000010.mp4" "$held"
echo _fetched_01_000000_000010 | kinetics 0 prefetch "${all[@]}" --source folder --folder "$held" --cache-size 2097200 --from-list -

# An archive that a fill has read to its end. One clip of its class is in no archive.
kinetics 3 fill "${all[@]}" --archive-url "$work/old/archives" --split validation --class "surfing water" --json
# An archive that was only indexed. Its server gives an ETag.
kinetics 0 index build "${all[@]}" --archive-url "$address" --archive 600/test/part_1.tar.gz

# Pins: two clips that are in the cache, and one that never was.
take 'archery__*'
kinetics 0 pin "${all[@]}" --split train --class archery

# Prefetches that a mount left unfinished: a selection and a list.
place=$work/mount
mkdir "$place"
kinetics 0 mount "${all[@]}" --source youtube --video-url "$address/watch/{id}" --log-file "$work/mount.log" "$place"
cat "$place/validation/surfing water/surfing__01_000000_000010.mp4" > /dev/null
kinetics 0 prefetch "$place" --class "juggling balls" --split train
echo train/juggling balls/juggling_02_000000_000010.mp4 | kinetics 0 prefetch "$place" --from-list -
kinetics 0 umount "$place"
take 'juggling_*' # so a mount that resumes them finishes at once

# Failures, and a site that blocks.
youtube=(--source youtube --video-url "$address/watch/{id}" --workers 1 --rate 100/h)
for video in gone_____01 trouble__01 blocked__01; do
    echo "${video}_000000_000010" | kinetics 3 prefetch "${all[@]}" "${youtube[@]}" --from-list -
done
now=$(date +%s)
cat > "$work/failures.jsonl" <<END
{"key": "account__01_000000_000010", "kind": "credentials", "reason": "Private video", "source": "youtube", "first_at": $((now - 9000)), "last_at": $((now - 600)), "attempts": 2}
{"key": "corrupt__01_000000_000010", "kind": "corrupt", "reason": "the file is cut short", "source": "youtube", "first_at": $((now - 600)), "last_at": $((now - 600)), "attempts": 1}
END
kinetics 0 failures import "${store[@]}" --kind credentials --kind corrupt "$work/failures.jsonl"

# The answers of this version about the cache.
kinetics 0 failures list --json "${store[@]}" > "$work/told/failures.json"
kinetics 0 failures report --json "${all[@]}" > "$work/told/survey.json"
kinetics 0 pin --list --json "${all[@]}" > "$work/told/pins.json"
kinetics 0 index info --json "${store[@]}" > "$work/told/index.json"
kinetics 0 report --json "${all[@]}" > "$work/told/report.json"

# Last, a fill that is killed in the middle of an archive. It writes a checkpoint after a second of work, so it is
# stopped again and again until there is one. The fetches that were under way stay in the cache as well.
before=$(find "$cache/clips" -name '*.mp4' | wc -l)
(cd "$work" && exec setsid "$python" -m kinetics_fs --config /dev/null fill "${all[@]}" \
    --archive-url "$work/old/archives" --split validation --class zumba --verify decode) &
fill=$!
until [ "$(find "$cache/clips" -name '*.mp4' | wc -l)" -gt "$before" ]; do sleep 0.005; done
kill -STOP -- "-$fill"
until ls "$cache"/fills/*/*.indexed > /dev/null 2>&1; do
    sleep 0.4
    kill -CONT -- "-$fill"
    sleep 0.01
    kill -STOP -- "-$fill"
done
kill -KILL -- "-$fill"
wait "$fill" || true

"$python" - "$work" "$now" > "$here/old_cache.json" <<'END'
import hashlib, json, sqlite3, sys
from pathlib import Path

work = Path(sys.argv[1])
told = {path.stem: json.loads(path.read_text()) for path in (work / "told").iterdir()}
origin = told["report"]["origins"]["youtube"]
base = str(work / "old/archives")
facts = {
    "commit": "644940b",
    "made_at": int(sys.argv[2]),
    "annotations": "http://127.0.0.1:1/annotations.csv",
    "base_of_archives": base,
    "mountpoint": str(work / "mount"),
    "sha256": {
        path.stem: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((work / "clips").iterdir())
        if not path.stem.startswith(("shared", "-evicted", "zumba"))
    },
    "sha256_of_half_filled": {
        path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((work / "clips").glob("zumba*"))
    },
    "evicted": {path.stem: path.stat().st_size for path in (work / "clips").glob("-evicted*")},
    "failures": told["failures"],
    "survey": told["survey"],
    "pins": told["pins"],
    "index": told["index"],
    "history": told["report"]["history"],
    "origin": {name: origin[name] for name in ("reason", "asked_in_an_hour")},
}
print(json.dumps(facts, indent=1))
END
tar -C "$work/old" --sort=name --owner=0 --group=0 --numeric-owner -c archives cache | gzip -9n > "$here/old_cache.tar.gz"
tar -tvzf "$here/old_cache.tar.gz"
ls -l "$here"
