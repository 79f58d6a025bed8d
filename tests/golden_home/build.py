"""Builds an installation with the code of an earlier commit, and records how that code answers:

    python -m tests.golden_home.build FOLDER

`FOLDER/sqlite/home` is a home folder with a gallery of real faces with kept crops, one that was moved between two model
packs, a compressed one, API keys, events, webhooks, a finished job, stored answers and calibrations.
`FOLDER/sqlite/answers.json` holds the secrets and the answers. Everything is created by the public commands and
requests of the earlier code.
"""

from __future__ import annotations

import io
import json
import random
import signal
import socket
import sys
import zipfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.golden_home.old_code import Command, command, extract, program, run_commands, run_python, search_path
from tests.photos import six_people
from tests.search_service.api.serving import Serve, image, ok
from tests.search_service.background.receiver import receiving
from tests.waiting import wait_for

SETTINGS = {"WHOSTHERE_PRECISION": "float32", "WHOSTHERE_KEEP_CROPS": "true", "WHOSTHERE_THREADS": "1"}

PREPARE = """
import sys
from pathlib import Path
from indexer.vision.files import ModelFiles
from indexer.vision.packs import SFACE
from search_service.demo import make_photos

make_photos(Path(sys.argv[1]))
print(ModelFiles(Path("/nowhere")).path(SFACE.embedder))
"""
"""For the earlier code: writes the demo's photos and prints where the network `sface` is installed."""

SYNTHETIC = 700
"""Random faces in the compressed gallery: FAISS asks for 39 training vectors for each of 16 centroids."""

STAFF = "/v1/galleries/staff"
PEOPLE = ("left-1", "left-2", "left-3", "left-4", "left-6", "hanks")
IDENTITIES: Mapping[str, Mapping[str, Any]] = {
    "left-1": {"name": "Ana Núñez", "metadata": {"desk": 4, "teams": ["red", "blue"], "badge": {"no": "x1"}}},
    "left-3": {"valid_from": "2020-02-29T08:00:00Z", "valid_until": "2099-12-31T00:00:00Z"},
    "left-6": {"name": "Expired", "valid_until": "2021-01-01T00:00:00Z"},
    "staff%2Fnö 1": {"name": "Nobody's photo"},
}
ROUTES = ("/galleries/staff/identities", "/galleries/large", "/keys", "/events", "/webhooks", "/jobs", "/models")


def prepare(folder: Path) -> None:
    """Writes `code`, `demo` and `models`, which the installations share."""
    extract(folder / "code")
    environment = SETTINGS | search_path(folder / "code")
    embedder = run_python(PREPARE, folder / "demo", **environment).strip()
    other = ["--embedder", embedder, "--detector", "sface", "--mean", "0", "--scale", "1", "--no-mirror"]
    (folder / "unused").mkdir()
    run_commands([command("models", "add", "other", *other, "--home", folder / "unused")], **environment)
    (folder / "unused" / "models").rename(folder / "models")


def build(folder: Path, out: Path, database_url: str = "") -> None:
    """Makes an installation in the new folder `out` from what `prepare` wrote to `folder`."""
    home = out / "home"
    home.mkdir(parents=True)
    (home / "models").symlink_to(folder / "models")
    environment = SETTINGS | search_path(folder / "code") | {"WHOSTHERE_DATABASE_URL": database_url}
    answers: dict[str, Any] = {"moved": fill_by_commands(home, folder, out, environment)}
    with receiving() as arriving, receiving(503, port=free_port()) as failing:
        serve = Serve(home, out / "serve.log", program=program(folder / "code"), **environment)
        try:
            key = ok(serve.ready().client.post("/v1/keys", json={"name": "admin", "scopes": ["admin"]}), 201)
            serve.client.headers["X-API-Key"] = key["key"]
            answers |= {"admin": key["key"], "failing_port": failing.port}
            fill_over_http(serve.client, folder / "demo", arriving.url, failing.url, answers)
            wait_for(lambda: len(arriving.received) == 2, "the events arrive at the webhook that accepts them")
            wait_for(lambda: bool(failing.received), "an event is sent to the webhook that refuses it")
            record_readings(serve.client, answers)
        finally:
            assert serve.end() in (0, -signal.SIGTERM), serve.log()
    (out / "answers.json").write_text(json.dumps(answers, indent=1, ensure_ascii=False))


def fill_by_commands(home: Path, folder: Path, out: Path, environment: Mapping[str, str]) -> Mapping[str, Any]:
    """Makes the galleries `moved` and `large`. Returns the answers of `moved` by both packs."""
    pq.write_table(synthetic_people(), out / "large.parquet")
    search = search_moved(folder / "demo", home)
    by_sface, _, by_other, *_ = run_commands(
        [
            command("enroll", folder / "demo" / "photos", "--gallery", "moved", "--home", home),
            search,
            command("gallery", "reembed", "moved", "--model", "other", "--home", home),
            search,
            command("gallery", "import", "large", out / "large.parquet", "--model", "sface", "--home", home),
            command("gallery", "rebuild", "large", "--home", home, WHOSTHERE_VECTORS="compressed"),
        ],
        **environment,
    )[1:]
    return {"sface": by_sface, "other": by_other}


def search_moved(demo: Path, home: Path) -> Command:
    """Returns the command that searches the gallery `moved` for two probes."""
    probes = [demo / "probes" / file for file in ("hanks-wide.webp", "left-4-dark.jpg")]
    return command("search", *probes, "--gallery", "moved", "--json", "--home", home)


def synthetic_people() -> pa.Table:
    return pa.table(
        {
            "external_id": [f"p{number}" for number in range(SYNTHETIC)],
            "embedding": list(embeddings()),
            "name": [None if number % 2 else f"Person {number}" for number in range(SYNTHETIC)],
            "metadata": [json.dumps({"number": number}) for number in range(SYNTHETIC)],
        }
    )


def embeddings() -> Any:
    """(SYNTHETIC, 128) float32 of unit length, the same each time."""
    vectors = np.random.default_rng(11).normal(size=(SYNTHETIC, 128)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def fill_over_http(client: httpx.Client, demo: Path, arriving: str, failing: str, answers: dict[str, Any]) -> None:
    """Makes the gallery `staff` and the service's own data, and searches all galleries."""
    ok(client.post("/v1/galleries", json={"name": "staff"}), 201)
    answers["keys"] = make_keys(client)
    hooks = ({"url": arriving, "gallery": "staff"}, {"url": failing, "decisions": ["no_match"]})
    answers["webhooks"] = [ok(client.post("/v1/webhooks", json=hook), 201) for hook in hooks]
    for external_id, details in IDENTITIES.items():
        ok(client.put(f"{STAFF}/identities/{external_id}", json=details), 201)
    enrolled = [enroll(client, demo, person) for person in PEOPLE]
    answers["enrolled"] = {"body": enrolled[0].json(), "status": enrolled[0].status_code}
    turned = (demo / "probes" / "left-3-turned.jpg").read_bytes()
    ok(client.post(f"{STAFF}/identities/left-3/faces", files=image(turned)), 201)
    answers["job"] = run_job(client, demo)
    ok(client.delete("/v1/galleries/large/identities/p7"))
    added = "/v1/galleries/large/identities/hanks/faces"
    ok(client.post(added, files=image((demo / "photos" / "hanks" / "1.jpg").read_bytes())), 201)
    for gallery in ("staff", "moved", "large"):
        ok(client.post(f"/v1/galleries/{gallery}/calibration"))
    answers["index"] = ok(client.get("/v1/galleries/large"))["index"]
    answers["recorded"] = [ok(record(client, demo, number)) for number in range(len(RECORDED))]
    answers["searches"] = {name: ok(search(client)) for name, search in searches(demo).items()}


def enroll(client: httpx.Client, demo: Path, person: str) -> httpx.Response:
    """Enrolls a person's photo into `staff`; the answer is stored under an Idempotency-Key."""
    files, headers = image((demo / "photos" / person / "1.jpg").read_bytes()), {"Idempotency-Key": f"enroll {person}"}
    return client.post(f"{STAFF}/identities/{person}/faces", files=files, headers=headers)


RECORDED = (
    ("left-1-small.jpg", {"device": "north-door", "direction": "in"}),
    ("hanks-wide.webp", {"device": "north-door"}),
    ("stranger.jpg", {"device": "south-door", "direction": "out", "threshold": "0.9"}),
)
"""Probes whose searches record an event, and the fields of these searches."""


def record(client: httpx.Client, demo: Path, number: int, key: str = "search") -> httpx.Response:
    file, fields = RECORDED[number]
    data = {"record": "true", "cooldown": "86400", **fields}
    files = image((demo / "probes" / file).read_bytes(), file)
    return client.post(f"{STAFF}/search", files=files, data=data, headers={"Idempotency-Key": f"{key} {number}"})


def make_keys(client: httpx.Client) -> dict[str, str]:
    """Makes a key of every scope, a limited one, one that has expired and one that is revoked. Returns their texts."""
    keys: Mapping[str, Mapping[str, Any]] = {
        "manager": {"scopes": ["admin"]},
        "personnel": {"scopes": ["enroll"], "expires_at": "2099-01-01T00:00:00Z"},
        "camera": {"scopes": ["search"], "per_minute": 6000},
        "north-door": {"scopes": ["search"], "galleries": ["staff"]},
        "south": {"scopes": ["enroll", "admin"], "galleries": ["staff", "moved"]},
        "revoked": {"scopes": ["admin"]},
    }
    created = {name: ok(client.post("/v1/keys", json={"name": name, **fields}), 201) for name, fields in keys.items()}
    soon = (datetime.now(UTC) + timedelta(seconds=3)).isoformat()  # the request must arrive before it expires
    created["expired"] = ok(
        client.post("/v1/keys", json={"name": "expired", "scopes": ["admin"], "expires_at": soon}), 201
    )
    ok(client.delete(f"/v1/keys/{created['revoked']['id']}"))
    return {name: key["key"] for name, key in created.items()}


def run_job(client: httpx.Client, demo: Path) -> str:
    """Enrolls an archive, one image of which is rejected. Returns the job's id when it has ended."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.write(demo / "photos" / "collins" / "1.jpg", "collins/1.jpg")
        file.write(demo / "probes" / "left-2-large.png", "left-2/2.png")
        file.writestr("left-2/3.jpg", b"no image")
    sent = client.post(f"{STAFF}/enrollments", files={"archive": ("photos.zip", archive.getvalue())})
    job = ok(sent, 202)["id"]
    wait_for(lambda: ok(client.get(f"/v1/jobs/{job}"))["state"] == "done", "the job ends")
    return str(job)


def searches(demo: Path) -> dict[str, Callable[[httpx.Client], httpx.Response]]:
    """Requests that change nothing, by name."""
    probes = {path.name: path.read_bytes() for path in sorted((demo / "probes").iterdir())}
    every = [("images", (name, data)) for name, data in probes.items()]
    frames = [one for one in every if one[1][0].startswith(("left-1", "left-2"))]
    small, close, group = (probes["left-1-small.jpg"], probes["collins-close.jpg"], six_people())
    noisy = embeddings()[:40:8] + np.random.default_rng(12).normal(size=(5, 128)).astype(np.float32) / 18

    def search(files: Any, gallery: str = "staff", **data: str) -> Callable[[httpx.Client], httpx.Response]:
        return lambda client: client.post(f"/v1/galleries/{gallery}/search", files=files, data=data)

    def embedding(values: Any) -> Callable[[httpx.Client], httpx.Response]:
        unit = (values / np.linalg.norm(values)).tolist()
        return lambda client: client.post("/v1/galleries/large/search", json={"embedding": unit, "top_k": 10})

    return {
        "each probe": search(every),
        "one probe": search(image(small), top_k="2"),
        "a lower FPIR": search(image(close), fpir="0.0001"),
        "a threshold": search(image(close), threshold="0.3", pick="center"),
        "all faces of a group": search(image(group), all_faces="true", top_k="3"),
        "frames of one person": search(frames, same_person="true"),
        "the gallery of another pack": search(every, "moved"),
        "a face enrolled after the compressed index was built": search(image(probes["hanks-wide.webp"]), "large"),
        **{f"embedding {number}": embedding(values) for number, values in enumerate(noisy)},
        "compare": lambda client: client.post("/v1/compare", files={"image_a": small, "image_b": close}),
        "detect": lambda client: client.post("/v1/detect", files=image(group)),
        "embed": lambda client: client.post("/v1/embed", files=image(small)),
        "duplicates": lambda client: client.get("/v1/galleries/large/duplicates", params={"threshold": 0.35}),
    }


def record_readings(client: httpx.Client, answers: dict[str, Any]) -> None:
    """Records lists, details and what each key opens."""
    expired = {"X-API-Key": answers["keys"]["expired"]}
    wait_for(lambda: client.get("/v1/keys", headers=expired).status_code == 401, "the key expires")
    answers["statuses"] = {name: statuses(client, key) for name, key in answers["keys"].items()}
    paths = ["/v1/galleries", "/v1/keys", f"{STAFF}/identities"]
    paths += [f"{STAFF}/identities/{one}" for one in (*IDENTITIES, "hanks")]
    paths += [f"{STAFF}/identities/{one}/faces" for one in ("left-2", "left-3")]
    paths += ["/v1/galleries/moved/identities", "/v1/galleries/large/identities?limit=1000"]
    paths += ["/v1/jobs", "/v1/jobs?gallery=staff", f"/v1/jobs/{answers['job']}"]
    paths += [f"/v1/jobs/{answers['job']}?outcome=rejected"]
    paths += [f"/v1/events/{answer['faces'][0]['event']['id']}" for answer in answers["recorded"]]
    paths += ["/v1/events", "/v1/events?gallery=staff&device=north-door", "/v1/events?decision=no_match&direction=out"]
    paths += ["/v1/webhooks", *(f"/v1/webhooks/{hook['id']}" for hook in answers["webhooks"])]
    answers["readings"] = {path: reading(client, path) for path in paths}


def statuses(client: httpx.Client, key: str) -> dict[str, int]:
    """Returns the HTTP status of each of ROUTES with an API key."""
    return {route: client.get(f"/v1{route}", headers={"X-API-Key": key}).status_code for route in ROUTES}


def reading(client: httpx.Client, path: str) -> Mapping[str, Any]:
    """Returns the body and the ETag of a list or a detail."""
    answer = client.get(path)
    return {"body": ok(answer), "etag": answer.headers.get("etag")}


def free_port() -> int:
    """Returns a port below those that operating systems assign by themselves, so that it stays free."""
    while True:
        with socket.socket() as tried:
            port = random.SystemRandom().randrange(20_000, 30_000)  # tests seed the other generators
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))
    build(Path(sys.argv[1]), Path(sys.argv[1]) / "sqlite")
