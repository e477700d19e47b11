"""A simulated disk with power failures: it carries out recorded system calls, and loses unsynced data.

`soak_power.py` records the calls by `strace`. A file that was not synced may be empty, cut anywhere, or have
pages of zeros. Of the creations, renames and deletions in a folder that was not synced, any part may have
happened, in any order.
"""

import os
import re

PAGE = 4096


class File:
    def __init__(self):
        self.content, self.synced = bytearray(), b""

    def sync(self):
        self.synced = bytes(self.content)

    def left(self, rng):
        """Returns the content that remains after a power failure."""
        if self.content == self.synced:
            return self.synced
        content = bytes(self.content)
        kind = rng.randrange(5)
        if kind == 0:
            return self.synced
        if kind == 1:
            return content
        if kind == 2:
            return content[: rng.randrange(len(content) + 1)]
        old = self.synced.ljust(len(content), b"\0")
        lost = rng.choice([0.1, 0.5, 1.0])
        pages = (
            (old if rng.random() < lost else content)[start : start + PAGE]
            for start in range(0, len(content), PAGE)
        )
        return b"".join(pages)


class Folder:
    def __init__(self):
        self.names, self.synced, self.changes = {}, {}, []

    def change(self, *changes):
        """Sets or removes (name, File, Folder or None) together."""
        self.changes.append(changes)
        apply(self.names, changes)

    def sync(self):
        self.synced, self.changes = dict(self.names), []

    def left(self, rng):
        """Returns the names that remain after a power failure, with their files and folders."""
        names = dict(self.synced)
        if rng.random() < 0.5:  # a journal keeps the order
            kept = self.changes[: rng.randrange(len(self.changes) + 1)]
        else:
            kept = [changes for changes in self.changes if rng.random() < 0.5]
        for changes in kept:
            apply(names, changes)
        return names


def apply(names, changes):
    for name, inode in changes:
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


def tree(inode, content, names):
    """Returns the paths below a folder: {path: bytes, or None for a folder}."""
    if isinstance(inode, File):
        return {"": content(inode)}
    found = {"": None}
    for name, child in names(inode).items():
        below = tree(child, content, names)
        found.update({os.path.join(name, path).rstrip("/"): data for path, data in below.items()})
    return found


def present(inode):
    """Returns the entries that the writing process sees, without hidden drafts and locks."""

    def visible(folder):
        return {name: inode for name, inode in folder.names.items() if not name.startswith(".")}

    return tree(inode, lambda file: bytes(file.content), visible)


class Disk:
    """Carries out recorded system calls on files below a folder."""

    def __init__(self, root):
        self.root, self.top = os.fspath(root), Folder()
        self.at, self.appends = {}, set()  # positions of descriptors, and appending descriptors
        for name in os.listdir(root):  # existing entries are on the disk
            self.top.change((name, Folder()))
        self.top.sync()

    def inside(self, path):
        return path.startswith(self.root + "/") and "(deleted)" not in path

    def find(self, path):
        inode = self.top
        for name in os.path.relpath(path, self.root).split("/"):
            inode = inode.names.get(name) if isinstance(inode, Folder) else None
        return inode

    def parent(self, path):
        folder, name = os.path.split(path)
        return (self.top if folder == self.root else self.find(folder)), name

    def call(self, name, arguments, strings, result):
        """Carries out a call; returns whether it has changed anything, or synced it."""
        handle = re.match(r"(\d+)<([^>]*)>", arguments)
        opened = re.match(r"(\d+)<([^>]*)>", result)
        if name in ("open", "openat", "creat"):
            path = decoded(opened[2]) if opened else ""
            if not self.inside(path):
                return False
            before, flags = self.find(path), arguments
            if before is None and "O_CREAT" in flags:
                folder, last = self.parent(path)
                folder.change((last, File()))
            elif "O_TRUNC" in flags:
                before.content.clear()
            self.at[opened[1]] = 0
            (self.appends.add if "O_APPEND" in flags else self.appends.discard)(opened[1])
            return before is None or "O_TRUNC" in flags
        if name.startswith(("rename", "unlink", "mkdir", "rmdir")):
            paths = [decoded(string) for string in strings]
            return all(map(self.inside, paths)) and self.rename(name, *paths)
        if not handle or not self.inside(path := decoded(handle[2])):
            return False
        inode, number = self.find(path), handle[1]
        if name in ("fsync", "fdatasync"):
            inode.sync()
        elif name == "lseek":
            self.at[number] = int(result)
            return False
        elif name == "ftruncate":
            size = int(arguments.rsplit(",", 1)[1])
            inode.content[:] = bytes(inode.content[:size]).ljust(size, b"\0")
        else:
            data = b"".join(map(raw, strings))
            end = len(inode.content) if number in self.appends else self.at[number]
            start = int(arguments.rsplit(",", 1)[1]) if name == "pwrite64" else end
            inode.content.extend(bytes(max(0, start - len(inode.content))))
            inode.content[start : start + len(data)] = data
            if name != "pwrite64":
                self.at[number] = start + len(data)
        return True

    def left(self, rng):
        """Returns the paths that remain after a power failure, as `tree` does."""
        return tree(self.top, lambda file: file.left(rng), lambda folder: folder.left(rng))

    def rename(self, name, path, new=None):
        folder, last = self.parent(path)
        if name.startswith("mkdir"):
            folder.change((last, Folder()))
        elif new is None:
            folder.change((last, None))
        else:
            other, new_last = self.parent(new)
            inode = folder.names[last]
            if other is folder:
                folder.change((last, None), (new_last, inode))
            else:
                other.change((new_last, inode))
                folder.change((last, None))
        return True


def raw(string):
    return bytes.fromhex(string.replace("\\x", ""))


def decoded(string):
    return os.fsdecode(raw(string)) if string.startswith("\\x") else string


def recorded(log):
    """Yields (name, arguments, strings, result) of the calls in strace's file that have succeeded."""
    started = {}
    for line in log.read_text().splitlines():
        process, _, rest = line.partition(" ")
        rest = rest.strip()
        if rest.endswith("<unfinished ...>"):
            started[process] = rest.removesuffix("<unfinished ...>")
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>", rest):
            rest = started.pop(process) + rest[resumed.end() :]
        if match := re.fullmatch(r"(\w+)\((.*)\)\s+= (\d.*)", rest):
            name, arguments, result = match.groups()
            yield name, arguments, re.findall(r'"([^"]*)"', arguments), result
