"""Links of the documentation lead somewhere, and what it and its tests list exists and is needed."""

import re

from doc_pages import (
    CHEAPER,
    NO_COMMAND,
    NOT_RUN,
    PAGES,
    PARSED,
    ROOT,
    blocks,
    commands,
    inline,
    prose,
)


def test_blocks_that_follow_each_other():
    page = "text\n\n    one\n\n```python\ntwo\n```\n\n    three"
    assert [block.text for block in blocks(page)] == ["one\n", "two\n", "three\n"]


def test_reasons_are_needed():
    """An unused entry would also match a new block with the same first characters."""
    texts = [block.text for path in PAGES.values() for block in blocks(path.read_text())]
    texts += [one for text in texts if "\n" in text for one in _commands_or_none(text)]
    texts += [text for path in PAGES.values() for _, text in inline(path.read_text())]
    for start, _ in NO_COMMAND:
        assert any(text.startswith(start) for text in texts), start
    for pattern, _ in (*NOT_RUN, *PARSED):
        assert any(re.match(pattern, text) for text in texts), pattern
    for pattern, _ in CHEAPER:
        assert any(re.search(pattern, text) for text in texts), pattern


def test_reasons_name_tests_that_exist():
    for _, why in (*NO_COMMAND, *NOT_RUN, *PARSED):
        for path in re.findall(r"tests/[\w/.]+", why):
            assert (ROOT / path).exists(), why


def _commands_or_none(text):
    try:
        return commands(text)
    except AssertionError:  # Python
        return []


def test_the_two_commands_are_what_ci_runs():
    script = (ROOT / ".ci" / "run").read_text().replace(" --quiet", "")
    found = [b.text for b in blocks(PAGES["README.md"].read_text()) if "python3 -m venv" in b.text]
    assert [text.split()[-1] for text in found] == ["quickstart", ".venv/bin/pytest"]
    for part in " && ".join(found).split(" && "):
        assert part.strip() in script


def test_links_lead_somewhere():
    for name, path in PAGES.items():
        for target, anchor in re.findall(
            r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", prose(path.read_text())
        ):
            if target.startswith("http"):
                continue
            file = path.parent / target if target else path
            assert file.exists(), f"{name}: {target}"
            assert not anchor or anchor in anchors(file), f"{name}: {target}#{anchor}"


def anchors(path):
    """Returns the anchors of a page's headings, as GitHub generates them."""
    found = []
    for heading in re.findall(r"^#+ (.+)$", prose(path.read_text()), re.MULTILINE):
        slug = re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
        number = sum(
            re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found
        )
        found.append(f"{slug}-{number}" if number else slug)
    return found
