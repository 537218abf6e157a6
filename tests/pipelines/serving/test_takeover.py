"""A new version of the gallery takes over while requests are answered."""

import threading
import time

from served_galleries import client_of, service_on, write_gallery


def test_no_request_is_lost_while_versions_change(tmp_path):
    folder = tmp_path / "gallery"
    known = {"000001": set(write_gallery(folder))}
    service = service_on(folder, poll_seconds=0.02)
    answers: list[tuple[int, str, set[str]]] = []
    done = threading.Event()
    with client_of(service) as client:

        def ask() -> None:
            while not done.is_set():
                answer = client.post("/api/search", json={"sentences": ["a red coat"], "k": 20})
                body = answer.json()
                answers.append((answer.status_code, body["version"], {match["id"] for match in body["matches"]}))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(2, 7):
            version = f"{number:06d}"
            known[version] = set(write_gallery(folder, first=10 * number, count=6 + number))
            deadline = time.monotonic() + 30
            while service.gallery.current.gallery.version != version:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            seen = len(answers)
            while len(answers) < seen + 8:  # each version answers some
                time.sleep(0.005)
        done.set()
        for thread in threads:
            thread.join()
    assert {status for status, _, _ in answers} == {200}
    assert {version for _, version, _ in answers} == set(known)
    assert all(found == known[version] for _, version, found in answers), "an answer is of one version"


def test_a_request_that_has_begun_ends_on_the_version_that_it_began_with(tmp_path):
    folder = tmp_path / "gallery"
    write_gallery(folder)
    service = service_on(folder)
    before = service.gallery.current
    write_gallery(folder, first=20, count=4)
    write_gallery(folder, first=40, count=4)
    assert service.gallery.refresh()
    assert not service.gallery.refresh()
    assert service.gallery.current.gallery.version == "000003"
    assert before.gallery.version == "000001"
    assert before.gallery.picture(0)
    assert service.metrics.registry.get_sample_value("person_search_gallery_versions_total") == 2


def test_a_version_that_cannot_be_opened_leaves_the_old_one_answering_and_is_tried_again(tmp_path, caplog):
    folder = tmp_path / "gallery"
    write_gallery(folder)
    service = service_on(folder)
    write_gallery(folder, first=20, count=4)
    vectors = folder / "versions" / "000002" / "vectors.npy"
    whole = vectors.read_bytes()
    vectors.write_bytes(whole[:-4])
    with client_of(service) as client:
        for _ in range(3):
            assert not service.gallery.refresh()
        assert client.post("/api/search", json={"sentences": ["red"]}).json()["version"] == "000001"
        assert caplog.text.count("version 000001 goes on answering") == 1, "said once, not at every attempt"
        vectors.write_bytes(whole)
        assert service.gallery.refresh()
        assert client.post("/api/search", json={"sentences": ["red"]}).json()["version"] == "000002"
        assert service.metrics.registry.get_sample_value("person_search_gallery_failures_total") == 3


def test_a_forgotten_picture_is_gone_with_the_next_version(tmp_path):
    folder = tmp_path / "gallery"
    first, *_ = write_gallery(folder)
    service = service_on(folder)
    with client_of(service) as client:
        tag = client.get(f"/api/pictures/{first}").headers["etag"]
        write_gallery(folder, first=1, count=11)
        service.gallery.refresh()
        for path in (f"/api/pictures/{first}", f"/api/pictures/{first}/thumbnail", f"/api/pictures/{first}/related"):
            assert client.get(path, headers={"If-None-Match": tag}).status_code == 404
        assert client.post("/api/search", json={"like": first}).status_code == 404
