"""Published augmentation recipes, one constant each, for `keras_ssl.ops.augment.view`.

The values are from the code that is named above each constant. There are two differences: SimCLR, BYOL and
AMDIM resize bicubically, but here resizing is bilinear; and some of the code rounds to 8 bits after each
operation, but here pixels stay float32.
"""

import dataclasses
import math

import keras

from keras_ssl.arguments import is_number

PROBABILITIES = ("flip", "jitter", "gray", "blur", "solarize")
RANGES = ("area", "aspect", "sigma")


@keras.saving.register_keras_serializable(package="keras_ssl")
@dataclasses.dataclass(frozen=True)
class Recipe:
    """Describes the augmentation of a view; with the defaults a view equals its image.

    Args:
        area: pair of floats in (0, 1], range of the fraction of the area that is kept; (1, 1) for no crop.
        aspect: pair of positive floats, range of the crop's width / height in pixels.
        flip: float in [0, 1], probability of mirroring left to right.
        jitter: float in [0, 1], probability of changing brightness, contrast, saturation and hue, in
            an order drawn for each image.
        brightness: float in [0, 1], b: a factor from 1 - b to 1 + b; with `additive`, a summand
            from -255 b to 255 b.
        contrast: float in [0, 1], c: the distance from the mean is multiplied by 1 - c to 1 + c.
        saturation: float in [0, 1], s: the distance from gray is multiplied by 1 - s to 1 + s.
        hue: float in [0, 0.5], h: the hue is shifted by -h to h of the color circle.
        additive: bool, whether brightness is added instead of multiplied.
        colors: "tensorflow" or "torchvision", the library whose definition of contrast and saturation is
            used: "tensorflow" keeps the mean of each channel and changes saturation in HSV (value stays);
            "torchvision" keeps the mean of the gray image and changes the distance from the pixel's gray
            (luminance stays).
        gray: float in [0, 1], probability of conversion to grayscale.
        blur: float in [0, 1], probability of a Gaussian blur.
        sigma: pair of positive floats, range of its standard deviation in pixels.
        kernel: float in (0, 1], width of its kernel as a fraction of the image's height.
        solarize: float in [0, 1], probability of inverting the pixels above a threshold.
        threshold: float in [0, 255], threshold of solarization.

    Raises:
        ValueError: a value is outside its range.

    Example:
        >>> crop_only = Recipe(area=(0.2, 1.0), aspect=(3 / 4, 4 / 3))
        >>> dataclasses.replace(crop_only, flip=0.5).flip
        0.5
    """

    area: tuple = (1.0, 1.0)
    aspect: tuple = (1.0, 1.0)
    flip: float = 0.0
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    additive: bool = False
    colors: str = "torchvision"
    gray: float = 0.0
    blur: float = 0.0
    sigma: tuple = (0.1, 2.0)
    kernel: float = 0.1
    solarize: float = 0.0
    threshold: float = 127.5

    def __post_init__(self):
        for name in RANGES:
            largest = 1 if name == "area" else math.inf
            object.__setattr__(self, name, _range(name, getattr(self, name), largest))
        for name in (*PROBABILITIES, "brightness", "contrast", "saturation"):
            _check(name, getattr(self, name), 0, 1)
        _check("hue", self.hue, 0, 0.5)
        _check("threshold", self.threshold, 0, 255)
        _check("kernel", self.kernel, 0, 1, above=True)
        if self.colors not in ("tensorflow", "torchvision"):
            raise ValueError(
                f'recipe: colors must be "tensorflow" or "torchvision", got {self.colors!r}'
            )
        strengths = self.brightness, self.contrast, self.saturation, self.hue
        if any(strengths) and not self.jitter:
            raise ValueError(
                "recipe: brightness, contrast, saturation and hue have no effect with jitter="
                f"{self.jitter!r}; set jitter to their probability, such as 0.8, or them to 0"
            )

    def get_config(self):
        """Returns the arguments as a dict, from which Keras saves a task that has a recipe."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        """Creates a recipe from the dict of `get_config`."""
        return cls(**config)


def find(recipe):
    """Returns the recipe with a given name.

    Args:
        recipe: str, the name of a constant of this module, such as "SIMCLR_SMALL"; or a Recipe.

    Returns:
        Recipe.

    Raises:
        ValueError: there is no such recipe.

    Example:
        >>> find("SIMCLR_SMALL").hue
        0.1
    """
    known = {name: value for name, value in globals().items() if isinstance(value, Recipe)}
    found = known.get(recipe, recipe) if isinstance(recipe, str) else recipe
    if not isinstance(found, Recipe):
        raise ValueError(
            f"recipe must be a Recipe or one of {', '.join(known)} of keras_ssl.ops.recipes, got {recipe!r}"
        )
    return found


def _check(name, value, least, most, above=False):
    if not is_number(value) or not least <= value <= most or (above and value == least):
        interval = f"{'(' if above else '['}{least}, {most}]"
        raise ValueError(f"recipe: {name} must be a number in {interval}, got {value!r}")


def _range(name, value, largest):
    pair = tuple(value) if isinstance(value, (tuple, list)) else ()
    numbers = len(pair) == 2 and all(isinstance(x, (int, float)) for x in pair)
    if not numbers or not 0 < pair[0] <= pair[1] <= largest or not math.isfinite(pair[1]):
        bound = " <= 1" if largest == 1 else ""
        raise ValueError(
            f"recipe: {name} must be a pair (low, high) with 0 < low <= high{bound}, got {value!r}; "
            f"for a fixed value repeat it, as in ({largest if bound else 1.0}, 1.0)"
        )
    return tuple(float(x) for x in pair)


_CROP = {"area": (0.08, 1.0), "aspect": (3 / 4, 4 / 3), "flip": 0.5}
_LARGER_CROP = {**_CROP, "area": (0.2, 1.0)}


def _strengths(brightness, contrast, saturation, hue):
    return {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}


# Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, appendix A;
# google-research/simclr data_util.py (strength 1, and 0.5 without blur for CIFAR). Brightness is a factor, as
# in that file's default, "simclrv2". Its blur pads with black; here images are mirrored.
SIMCLR = Recipe(
    **_CROP, jitter=0.8, **_strengths(0.8, 0.8, 0.8, 0.2), colors="tensorflow", gray=0.2, blur=0.5
)
SIMCLR_SMALL = dataclasses.replace(SIMCLR, **_strengths(0.4, 0.4, 0.4, 0.1), blur=0.0)

# Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, appendix B; deepmind-research
# byol/utils/augmentations.py (view1, view2). The first and the second view differ on purpose.
BYOL_1 = Recipe(
    **_CROP, jitter=0.8, **_strengths(0.4, 0.4, 0.2, 0.1), additive=True, colors="tensorflow",
    gray=0.2, blur=1.0,
)  # fmt: skip
BYOL_2 = dataclasses.replace(BYOL_1, blur=0.1, solarize=0.2)

# The same for small images: without blur, as for SimCLR.
BYOL_1_SMALL = dataclasses.replace(BYOL_1, blur=0.0)
BYOL_2_SMALL = dataclasses.replace(BYOL_2, blur=0.0)

# He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020;
# facebookresearch/moco main_moco.py, which converts to grayscale before the jitter; here it is after it.
MOCO_V1 = Recipe(**_LARGER_CROP, jitter=1.0, **_strengths(0.4, 0.4, 0.4, 0.4), gray=0.2)
# Chen, Fan, Girshick & He, "Improved Baselines with Momentum Contrastive Learning", 2020; the same file
# with --aug-plus. Its blur is Pillow's, which approximates a Gaussian by box filters.
MOCO_V2 = Recipe(**_LARGER_CROP, jitter=0.8, **_strengths(0.4, 0.4, 0.4, 0.1), gray=0.2, blur=0.5)
# The authors' notebook moco_cifar10_demo.ipynb, for CIFAR-10.
MOCO_SMALL = Recipe(**_CROP, jitter=0.8, **_strengths(0.4, 0.4, 0.4, 0.1), gray=0.2)

# Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020; HobbitLong/SupContrast
# main_supcon.py, for CIFAR.
SUPCON_SMALL = dataclasses.replace(MOCO_SMALL, area=(0.2, 1.0))

# Wang & Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on
# the Hypersphere", ICML 2020; SsnL/align_uniform, for STL-10 at 64 pixels.
ALIGN_UNIFORM = Recipe(**_CROP, jitter=1.0, **_strengths(0.4, 0.4, 0.4, 0.4), gray=0.2)

# Bachman, Hjelm & Buchwalter, "Learning Representations by Maximizing Mutual Information Across
# Views", NeurIPS 2019; Philip-Bachman/amdim-public datasets.py, for STL-10. Both views of an image are
# mirrored alike, so the flip is not part of a view.
AMDIM = Recipe(
    area=(0.3, 1.0), aspect=(0.7, 1.4), jitter=0.8, **_strengths(0.4, 0.4, 0.4, 0.2), gray=0.25
)
# For CIFAR, where the code moves the image by up to 4 pixels (`augment.random_shift`) instead of the crop.
AMDIM_SMALL = dataclasses.replace(AMDIM, area=(1.0, 1.0), aspect=(1.0, 1.0))

# Misra & van der Maaten, "Self-Supervised Learning of Pretext-Invariant Representations", CVPR 2020;
# facebookresearch/vissl pirl_jigsaw_4node_resnet50.yaml, without its sharpness, solarize, posterize and
# contrast, one of which is applied to each image there. Patches are not cropped again.
PIRL = Recipe(**_CROP, jitter=1.0, **_strengths(0.4, 0.4, 0.4, 0.2), gray=0.2)

# Tian, Krishnan & Isola, "Contrastive Multiview Coding", ECCV 2020; HobbitLong/CMC. The views are color
# channels, which a jitter would change. For AlexNet on ImageNet the area is at least 0.2.
CMC = Recipe(**_CROP)
