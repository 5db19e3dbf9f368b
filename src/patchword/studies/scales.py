"""Three scales: how much is spent on an experiment of the paper, on which models and data.

`smoke` proves the machinery in minutes and judges nothing. `laptop` asks the same of small models and pictures, within hours.
`full` is the paper's own protocol, for whoever has its data and machines.
"""

from patchword.studies.experiment import Scale, ScaleName
from patchword.training.recipe import Budget

SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(
        name="smoke",
        seeds=1,
        models={
            "plain": "ViT-At/8",
            "large": "ViT-Fe/8",
            "hybrid": "C3+ViT-At/8",
            "resnet": "BiT-R14x0.25",
            "resnet-large": "BiT-R14x0.5",
        },
        sets={
            "pretrain": "formula:shapes-20x60",
            "tune": "formula:shapes-8x60@32,seed=1",
        },
        others=("formula:fractals-8x60", "formula:shapes-4x60@32,seed=2"),
        image_size=32,
        before=Budget(pflop=4e-5),
        after=Budget(pflop=1e-5),
        subsets=(100, 400, 0),
        few=80,
        searched=False,
        steps=9,
        verdicts=False,
    ),
    "laptop": Scale(
        name="laptop",
        seeds=3,
        models={
            "plain": "ViT-At/8",
            "large": "ViT-Fe/8",
            "hybrid": "C3+ViT-At/8",
            "resnet": "BiT-R14x0.5",
            "resnet-large": "BiT-R26x0.5",
        },
        sets={"pretrain": "cifar10", "tune": "fashion-mnist"},
        others=("clothing", "digits"),
        image_size=32,
        before=Budget(pflop=0.004),
        after=Budget(pflop=0.002),
        subsets=(500, 2000, 10_000, 0),
        few=1000,
        steps=1000,
    ),
    "full": Scale(
        name="full",
        seeds=3,
        models={
            "plain": "ViT-B/32",
            "large": "ViT-L/16",
            "hybrid": "R50+ViT-B/32",
            "resnet": "BiT-R50x1",
            "resnet-large": "BiT-R152x2",
        },
        sets={"pretrain": "imagenet21k", "tune": "imagenet"},
        others=("cifar10", "cifar100", "pets", "flowers102"),
        image_size=224,
        after_size=384,
        before=Budget(),
        after=Budget(),
        before_recipe="paper-imagenet/i21k-B",
        after_recipe="paper-finetune/imagenet",
        after_recipes={
            "cifar10": "paper-finetune/cifar",
            "cifar100": "paper-finetune/cifar",
            "pets": "paper-finetune/pets",
            "flowers102": "paper-finetune/flowers",
        },
        alone_recipe="paper-imagenet",
        subsets=(1_281_167, 4_000_000, 0),
        few=0,
        searched=False,
    ),
}
PICTURES = {"imagenet21k": 14_197_122, "imagenet": 1_281_167, "cifar10": 50_000, "cifar100": 50_000, "pets": 3_680}
PICTURES |= {"flowers102": 1_020}
"""Training pictures of public sets, for what a full experiment costs where they are not there."""
