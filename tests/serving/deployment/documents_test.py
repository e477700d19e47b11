"""The commands, files and configurations in the documents."""

import re

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2


@pytest.fixture
def snippets(serving_files):
    """The model configs in operations.md, in order."""
    text = serving_files.documents[0].read_text()
    return [
        text_format.Parse(t, model_server_config_pb2.ModelServerConfig()).model_config_list.config[
            0
        ]
        for t in re.findall(r"```proto\n(.*?)```", text, re.DOTALL)
    ]


def test_the_rollout_labels_only_versions_that_are_loaded(serving_files, snippets):
    """Each config assigns labels only to versions that the previous one has loaded."""
    pinned, *steps = snippets
    assert not pinned.version_labels
    assert len(steps) == 4
    assert [dict(step.version_labels) for step in steps] == [
        {"stable": 1}, {"stable": 1}, {"stable": 1, "canary": 2}, {"stable": 2, "canary": 2},
    ]  # fmt: skip
    loaded = {1}
    for step in steps:
        assert set(step.version_labels.values()) <= loaded
        loaded = set(step.model_version_policy.specific.versions)
        assert set(step.version_labels.values()) <= loaded
    # A server needs these flags to start with labels.
    for arguments in (serving_files.server["command"], serving_files.container["args"]):
        assert (
            serving_files.flags(arguments)["allow_version_labels_for_unavailable_models"] == "true"
        )
        assert int(serving_files.flags(arguments)["model_config_file_poll_wait_seconds"]) > 0


def test_files_links_and_metrics_in_the_documents_exist(serving_files, metrics):
    for path in serving_files.documents:
        text = path.read_text()
        for name in re.findall(r"`([\w-]+\.(?:config|ya?ml|json))`", text):
            if name != "ssl.config":
                assert (serving_files.folder / name).is_file(), name
        for link in re.findall(r"\]\(([^)#]+)(?:#[\w-]*)?\)", text):
            assert (path.parent / link).exists(), link
        headings = {
            re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-")
            for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        }
        for anchor in re.findall(r"\]\(#([\w-]+)\)", text):
            assert anchor in headings, anchor
        for name in re.findall(r"`(:tensorflow:[\w:]+)`", text):
            assert name in metrics, name
    readme = serving_files.documents[1].read_text()
    for file in serving_files.folder.iterdir():
        assert file.name == "README.md" or f"`{file.name}`" in readme, file.name
