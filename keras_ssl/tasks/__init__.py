"""The pretext tasks, one file each, and `TASKS`, the table that lists them."""

import importlib
from typing import NamedTuple


class Row(NamedTuple):
    """A row of `TASKS`; the class is in the file `<family>/<name>.py`."""

    name: str
    class_name: str
    family: str
    paper: str
    labels: str

    @property
    def task(self):
        """Returns the class of the task; imports its module, and so TensorFlow, at the first use."""
        module = importlib.import_module(f"{__name__}.{self.family}.{self.name}")
        return getattr(module, self.class_name)


# fmt: off
TASKS = [
    Row("rotation", "Rotation", "context", "Gidaris et al. 2018",
        "by how much the image is rotated"),
    Row("relative_patch", "RelativePatch", "context", "Doersch et al. 2015",
        "on which of eight sides the other patch lies"),
    Row("jigsaw", "Jigsaw", "context", "Noroozi & Favaro 2016",
        "which permutation shuffled the tiles"),
    Row("jigsaw_plus", "JigsawPlus", "context", "Noroozi et al. 2018",
        "the same, with some tiles of another image"),
    Row("exemplar", "Exemplar", "similarity", "Dosovitskiy et al. 2016",
        "which of N patches was transformed"),
    Row("exemplar_triplet", "ExemplarTriplet", "similarity", "Doersch & Zisserman 2017",
        "which patch of the batch is the same one, transformed"),
    Row("colorization", "Colorization", "generation", "Zhang et al. 2016",
        "the colors of a grayscale image"),
    Row("inpainting", "Inpainting", "generation", "Pathak et al. 2016",
        "the content of the masked region"),
    Row("super_resolution", "SuperResolution", "generation", "Ledig et al. 2017",
        "the image before it was downsampled"),
    Row("gan", "GAN", "generation", "Donahue et al. 2017",
        "whether a pair of image and code is real or generated"),
    Row("deep_cluster", "DeepCluster", "clustering", "Caron et al. 2018",
        "the k-means cluster of the image's features"),
    Row("self_label", "SelfLabel", "clustering", "Asano et al. 2020",
        "balanced labels by optimal transport"),
    Row("sift_clusters", "SiftClusters", "clustering", "Christlein et al. 2017",
        "the cluster of the patch's SIFT descriptor"),
    Row("synthetic_multitask", "SyntheticMultitask", "semantic", "Ren & Lee 2018",
        "depth, normals and contours of rendered images"),
    Row("relative_depth", "RelativeDepth", "semantic", "Jiang et al. 2018",
        "which pixels are farther, as the motion to the next frame tells"),
    Row("simclr", "SimCLR", "contrastive", "Chen et al. 2020",
        "which view in the batch is of the same image"),
    Row("moco", "MoCo", "contrastive", "He et al. 2020",
        "which key of a queue is of the same image"),
    Row("byol", "BYOL", "contrastive", "Grill et al. 2020",
        "a momentum encoder's embedding of another view"),
    Row("supcon", "SupCon", "contrastive", "Khosla et al. 2020",
        "which views in the batch are of the same class"),
    Row("align_uniform", "AlignUniform", "contrastive", "Wang & Isola 2020",
        "an embedding spread evenly, equal for both views"),
    Row("pirl", "PIRL", "contrastive", "Misra & van der Maaten 2020",
        "which image in a memory bank the shuffled patches are of"),
    Row("cmc", "CMC", "contrastive", "Tian et al. 2020",
        "which lightness in a memory bank the colors are of"),
    Row("cmc_depth", "CMCDepth", "contrastive", "Tian et al. 2020",
        "which lightness in a memory bank the colors, the depth and the normals are of"),
    Row("pcl", "PCL", "contrastive", "Li et al. 2021",
        "which key of a queue is of the same image, and which prototype"),
    Row("cpc", "CPC", "contrastive", "van den Oord et al. 2018",
        "which patches in the batch lie below"),
    Row("amdim", "AMDIM", "contrastive", "Bachman et al. 2019",
        "which local features in the batch are of the other view"),
    Row("deep_infomax", "DeepInfoMax", "contrastive", "Hjelm et al. 2019",
        "which feature map in the batch is of the same image"),
    Row("ego_motion", "EgoMotion", "crossmodal", "Agrawal et al. 2015",
        "how the camera moved between two frames"),
    Row("rgb_depth", "RGBDepth", "crossmodal", "Zhang et al. 2017",
        "the depth of an image, and the image of a depth map"),
    Row("depth_distillation", "DepthDistillation", "crossmodal", "Gupta et al. 2016",
        "from depth the features that a teacher has for the image"),
    Row("temporal_order", "TemporalOrder", "temporal", "Misra et al. 2016",
        "whether three frames are in order"),
    Row("order_prediction", "OrderPrediction", "temporal", "Lee et al. 2017",
        "which of 12 orders four frames are in"),
    Row("frame_prediction", "FramePrediction", "temporal", "Mathieu et al. 2016",
        "the next frame, the one before, or what is hidden in one"),
    Row("cpc_frames", "CPCFrames", "temporal", "van den Oord et al. 2018",
        "which frames in the batch come next"),
    Row("moving_objects", "MovingObjects", "temporal", "Pathak et al. 2017",
        "which pixels of a single frame move"),
]
# fmt: on

__all__ = ["TASKS", "Row", *(row.class_name for row in TASKS)]


def __getattr__(name):
    for row in TASKS:
        if row.class_name == name:
            return row.task
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
