"""Cuts GIF files after their first frame, since TensorFlow decodes all frames to return one."""

import tensorflow as tf

WINDOW = 2**12  # bytes in which the ends of blocks are looked up at once
EXTENSION, FRAME, TRAILER = 0x21, 0x2C, b"\x3b"  # first bytes of records
NOTHING = -1


# Not inlined: a graph executes the operations of every branch, as "dead" ones in branches that are not taken,
# and that would take as long as decoding a small JPEG.
@tf.function(
    input_signature=[tf.TensorSpec((), tf.string)],
    autograph=False,
    experimental_attributes={"_noinline": True},
)
def first_frame(encoded):
    """Reduces a GIF to its first frame, without its extensions.

    Time and memory are proportional to the length of the file, whatever its blocks look like.

    Args:
        encoded: () string tensor, the bytes of a GIF file.

    Returns:
        (file, pixels): the bytes of a GIF file with one frame, () string tensor, and the height * width of
        this frame, () int64 tensor. If there is no frame, the original bytes and -1.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> frames = [Image.new("P", (8, 6), color) for color in range(3)]
        >>> file = io.BytesIO()
        >>> frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
        >>> cut, pixels = first_frame(file.getvalue())
        >>> int(pixels), Image.open(io.BytesIO(cut.numpy())).n_frames
        (48, 1)
    """
    data = tf.io.decode_raw(encoded, tf.uint8)
    size = tf.size(data)

    def byte(position):
        return tf.cast(data[tf.minimum(position, size - 1)], tf.int32)

    def after_colors(position, flags):  # a table of 2 to 256 colors, if there is one
        return position + tf.where(flags > 127, 3 * 2 ** (1 + flags % 8), 0)

    def cut():
        parts = (0, start), (frame, tf.minimum(end, size) - frame)
        parts = [tf.strings.substr(encoded, *part) for part in parts]
        width, height = (byte(frame + i) + 256 * byte(frame + i + 1) for i in (5, 7))
        pixels = tf.cast(width, tf.int64) * tf.cast(height, tf.int64)
        return tf.strings.join([*parts, TRAILER]), pixels

    start = after_colors(13, byte(10))
    frame = _skip(data, start, inside=False, skipped=EXTENSION)
    blocks = after_colors(frame + 10, byte(frame + 9)) + 1
    # Nearly all programs write blocks of 255 bytes, then a shorter one.
    full = tf.concat([data[blocks::256] == 255, [False]], 0)
    last = blocks + 256 * tf.argmin(tf.cast(full, tf.uint8), output_type=tf.int32)
    end = _skip(data, last, inside=True)
    complete = (blocks < size) & (byte(frame) == FRAME)
    return tf.cond(complete, cut, lambda: (encoded, tf.constant(-1, tf.int64)))


def _skip(data, position, inside, skipped=NOTHING):
    """Skips blocks up to the next record, and optionally the records that start with the byte `skipped`.

    Reading one block after another takes 10 us for each, and a block can have only two bytes. So the chain of
    blocks is followed through a whole window of the file at once, by pointer doubling: the successor of each
    position is replaced by the successor of its successor, `log2(WINDOW)` times.

    Args:
        data: (n,) uint8 tensor, the file.
        position: () int32 tensor.
        inside: bool, whether a block starts at `position`; otherwise a record.
        skipped: int, the first byte of records to skip.

    Returns:
        () int32 tensor, the position of a record that is not skipped; n or more if the file ends before.
    """

    def more(position, inside):
        at = data[tf.minimum(position, tf.size(data) - 1)]
        return (position < tf.size(data)) & (inside | (tf.cast(at, tf.int32) == skipped))

    def leave_window(position, inside):
        window = tf.cast(data[position : position + WINDOW], tf.int32)
        index, beyond = tf.range(tf.size(window)), tf.range(tf.size(window), tf.size(window) + 256)
        blocks = tf.size(window) + 256  # is added to an index in the window where a block starts
        successor = tf.concat(
            [
                tf.where(window == skipped, index + 2 + blocks, index),
                beyond,
                tf.where(window == 0, index + 1, index + 1 + window + blocks),
                beyond + blocks,
            ],
            0,
        )
        for _ in range(WINDOW.bit_length() - 1):
            successor = tf.gather(successor, successor)
        last = successor[tf.where(inside, blocks, 0)]
        return position + last % blocks, last >= blocks

    return tf.while_loop(more, leave_window, (position, tf.constant(inside)))[0]
