"""Extraction: resuming, partial files of other runs, unreadable files, memory."""

import itertools
import os
import threading
import tracemalloc

import grpc
import numpy as np
import pytest

import keras_ssl as kssl
from keras_ssl.serving.client import extraction, partial_file


def test_a_truncated_partial_file_resumes_after_its_complete_rows(
    tmp_path, capsys, fake_server, numbered_files, check_result, interrupt
):
    paths, out = numbered_files(tmp_path / "photos", 50), tmp_path / "features.npz"
    fake = fake_server()
    with fake_server().client(batch_size=5) as client:
        interrupt(client, paths, out, after=4)
    with open(f"{out}.part", "r+b") as file:
        file.truncate(os.path.getsize(file.name) - 3)
    with fake.client(batch_size=5) as client:
        extraction.extract(client, paths, out, progress=True)
    assert capsys.readouterr() == ("", "resuming at image 16 of 50\n")
    assert sorted(itertools.chain(*fake.requests)) == list(range(15, 50))
    check_result(out, paths)


def test_a_partial_file_is_resumed_by_its_own_version_only(
    tmp_path, fake_server, numbered_files, check_result, interrupt
):
    paths, out = numbered_files(tmp_path / "photos", 50), tmp_path / "features.npz"
    fake = fake_server(version=3)
    with fake.served() as port:
        address = f"localhost:{port}"
        with kssl.FeatureClient(address, "m", label="stable", batch_size=5) as client:
            interrupt(client, paths, out, after=4)
            assert fake.specs[0].version_label == "stable"
            assert {spec.version.value for spec in fake.specs[1:]} == {3}

            # The server has a newer version by now, and ignores which one is requested.
            fake.version = 4
            with pytest.raises(RuntimeError, match="requested version 3 .* with version 4"):
                extraction.extract(client, paths, out)
            # The server no longer has the old version.
            fake.behave = lambda numbers, context: context.abort(
                grpc.StatusCode.NOT_FOUND, "Servable not found"
            )
            with pytest.raises(
                ValueError, match=r"computed by version 3: serve it, or delete that file"
            ):
                extraction.extract(client, paths, out)

            fake.version, fake.behave = 3, lambda numbers, context: None
            fake.specs.clear()
            extraction.extract(client, paths, out)
            assert {spec.version.value for spec in fake.specs} == {3}
    check_result(out, paths)


def test_a_partial_file_of_something_else_is_not_touched(
    tmp_path, fake_server, numbered_files, interrupt
):
    paths, out = numbered_files(tmp_path / "photos", 50), tmp_path / "features.npz"
    with fake_server().client(batch_size=5) as client:
        interrupt(client, paths, out, after=4)
        partial = (tmp_path / "features.npz.part").read_bytes()
        address = client.address
        cases = [
            ({"model": "n"}, paths, r"\(different model"), ({"label": "stable"}, paths, r"\(different label"),
            ({"version": 2}, paths, r"\(different version"), ({}, paths[1:], r"\(different files"),
            ({"model": "n"}, paths[::-1], r"\(different model and files"),
        ]  # fmt: skip
        for arguments, files, message in cases:
            other = kssl.FeatureClient(address, **{"model": "m", **arguments})
            with other, pytest.raises(ValueError, match=f"{message}.*delete it to start again"):
                extraction.extract(other, files, out)
        with open(paths[7], "ab") as file:
            file.write(b"0")
        with pytest.raises(ValueError, match="different files"):
            extraction.extract(client, paths, out)
        assert (tmp_path / "features.npz.part").read_bytes() == partial
        for foreign in (b"PK\3\4 something", b"[]\n", b'{"draft of": "tea"}\n'):
            (tmp_path / "features.npz.part").write_bytes(foreign)
            with pytest.raises(ValueError, match="contains something else"):
                extraction.extract(client, paths, out)
            assert (tmp_path / "features.npz.part").read_bytes() == foreign
    assert not out.exists()


def test_unreadable_files_are_left_out_with_a_warning(
    tmp_path, fake_server, numbered_files, check_result
):
    paths, out = numbered_files(tmp_path / "photos", 60), tmp_path / "features.npz"
    bad = {0, 1, 17, 18, 40, 59}

    def behave(numbers, context):
        if bad & set(numbers):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Unknown image file format")

    with fake_server(behave).client(batch_size=7) as client:
        with pytest.warns(UserWarning, match=r"skipped 6 of 60 files, .*0000.jpg, .*0059.jpg"):
            shape = extraction.extract(client, paths, out)
        assert shape == (54, 2)
        check_result(out, paths, [i for i in range(60) if i not in bad])
        with pytest.raises(ValueError, match="none of the 2 files is an image"):
            extraction.extract(client, paths[:2], tmp_path / "none.npz")
        with pytest.raises(ValueError, match="at least one file"):
            extraction.extract(client, [], tmp_path / "none.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.npz", "photos"]


def test_resuming_without_a_readable_image(tmp_path, fake_server, numbered_files):
    paths, out = numbered_files(tmp_path / "photos", 3), tmp_path / "features.npz"

    def reject(numbers, context):
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Unknown image file format")

    with fake_server(reject).client() as client:
        # Killed after the rows of the unreadable files, before that of the first image.
        partial = partial_file.PartialFile(f"{out}.part", client, paths)
        partial.create(1, 2)
        partial.append_unreadable(2)
        with pytest.raises(ValueError, match="none of the 3 files is an image that the server"):
            extraction.extract(client, paths, out)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_memory_does_not_grow_with_the_features(tmp_path):
    client = kssl.FeatureClient("localhost:1", "m")
    partial = partial_file.PartialFile(str(tmp_path / "features.npz.part"), client, [])
    partial.create(1, 64)
    number = 50 * 4096
    paths = [f"{i:06d}" for i in range(number)]
    for i in range(0, number, 4096):
        partial.append(np.repeat(np.arange(i, i + 4096, dtype=np.float32)[:, None], 64, 1))
    tracemalloc.start()
    assert partial.readable().sum() == number
    extraction._write(partial, paths, str(tmp_path / "features.npz"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16e6  # the features are 52 MB
    found = np.load(tmp_path / "features.npz")
    np.testing.assert_array_equal(found["features"][:, 3], np.arange(number))
    assert found["path"][-1] == f"{number - 1:06d}"
    client.close()


def test_two_extractions_to_one_file(tmp_path, fake_server, numbered_files, check_result, wait_for):
    """The second one is refused while the first one runs, and leaves its files alone."""
    paths, out = numbered_files(tmp_path / "photos", 30), tmp_path / "features.npz"
    go_on = threading.Event()
    fake = fake_server(lambda numbers, context: go_on.wait(20) and None)
    with fake.client(batch_size=5) as client:
        first = threading.Thread(target=extraction.extract, args=(client, paths, out))
        first.start()
        wait_for(lambda: fake.requests)
        with pytest.raises(
            ValueError,
            match=rf"out '.*features.npz' is used by another run \(process {os.getpid()} on",
        ):
            extraction.extract(client, paths, out)
        go_on.set()
        first.join()
    check_result(out, paths)
