"""Callbacks of a resumed training run: the steps for which they are called, and their states."""

import keras

# The attributes that Keras' own callbacks carry from one epoch to the next.
OF_KERAS = {
    keras.callbacks.EarlyStopping: ("best", "best_epoch", "wait"),
    keras.callbacks.ReduceLROnPlateau: ("best", "cooldown_counter", "wait"),
    keras.callbacks.ModelCheckpoint: ("best",),
}


def states(callbacks):
    """Collects the states that callbacks carry from one epoch to the next.

    These are the attributes that a callback lists in its attribute `checkpointed`, and attributes of Keras'
    callbacks that compare epochs.

    Args:
        callbacks: list of keras.callbacks.Callback.

    Returns:
        dict for JSON: name and number of the callback to a dict of its attributes.

    Example:
        >>> states([keras.callbacks.ModelCheckpoint("a.keras")])
        {'ModelCheckpoint 0': {'best': None}}
    """
    return {
        name: {attribute: getattr(callback, attribute) for attribute in attributes}
        for name, callback, attributes in _with_state(callbacks)
    }


def set_states(callbacks, saved):
    """Restores the states that `states` has collected; callbacks that are new keep their state.

    Args:
        callbacks: list of keras.callbacks.Callback, after their `on_train_begin`.
        saved: dict, as returned by `states`.
    """
    for name, callback, attributes in _with_state(callbacks):
        for attribute in attributes:
            if attribute in saved.get(name, {}):
                setattr(callback, attribute, saved[name][attribute])


def _with_state(callbacks):
    """Yields (name, callback, names of its attributes) of the callbacks that have any."""
    seen = []
    for callback in callbacks:
        attributes = getattr(callback, "checkpointed", ()) or next(
            (names for kind, names in OF_KERAS.items() if isinstance(callback, kind)), ()
        )
        if attributes:
            kind = type(callback).__name__
            yield f"{kind} {seen.count(kind)}", callback, attributes
            seen.append(kind)


class Resumed(keras.callbacks.CallbackList):
    """Callbacks of a training run that is resumed in the middle of an epoch.

    Keras always counts the steps of an epoch from 0. The steps before the checkpoint are not run again, and
    the callbacks are not called for them.
    """

    def __init__(self, task, callbacks, step, epochs, steps, verbose):
        super().__init__(
            callbacks, add_history=True, add_progbar=verbose != 0, model=task, verbose=verbose,
            epochs=epochs, steps=steps,
        )  # fmt: skip
        self.first_epoch, self.first = divmod(step, steps)
        task.make_train_function()
        function, left = task.train_function, self.first // task.steps_per_execution

        def train_function(iterator):
            nonlocal left
            if left:
                left -= 1
                return {}
            task.train_function = function
            return function(iterator)

        task.train_function = train_function

    def on_epoch_begin(self, epoch, logs=None):
        self.done = self.first if epoch == self.first_epoch else 0
        super().on_epoch_begin(epoch, logs)

    def on_train_batch_begin(self, batch, logs=None):
        if batch >= self.done:
            super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        if batch >= self.done:
            super().on_train_batch_end(batch, logs)
