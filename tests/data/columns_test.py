"""Random access: parts of a dataset load only their own rows."""

import numpy as np

from keras_ssl import data


def test_a_subset_loads_only_its_own_rows(folder):
    dataset = data.from_folder(folder, size=8, check=False)
    for name in dataset.paths[::2]:
        open(name, "w").close()  # loading these fails
    part = data.subset(dataset, range(1, 8, 2))
    assert data.to_arrays(part)["id"].tolist() == [1, 3, 5, 7]
    assert part.class_names == ["cat", "dog", "eel"]
    assert data.to_arrays(data.subset(part, [0, 3]))["id"].tolist() == [1, 7]
    stream = data.subset(data.from_array(np.zeros((5, 4, 4))).map(dict), [0, 4])
    assert int(stream.cardinality()) == 2
    assert data.to_arrays(stream)["id"].tolist() == [0, 4]
