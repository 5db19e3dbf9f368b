"""The paper's tables and figures as experiments: what they ask, with which arms, and what was published (arXiv 2010.11929)."""

from patchword.studies import arms, inside, published
from patchword.studies.experiment import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    each.name: each
    for each in (
        Experiment(
            name="position",
            title="Position embeddings",
            question="Does a ViT need to be told where its patches are, and does it matter how?",
            source="appendix D.4, Table 8",
            arms=arms.positions,
            measures=lambda scale: f"accuracy in % on test of {arms.on(scale, 'pretrain')}, from nothing",
            published=published.TABLE8,
            published_is="5-shot accuracy in % on ImageNet, ViT-B/16 pre-trained on JFT",
        ),
        Experiment(
            name="patch",
            title="Patch size",
            question="Are smaller patches better for an encoder of the same size?",
            source="section 4.2, Table 5",
            arms=arms.patches,
            measures=lambda scale: (
                f"accuracy in % on test of {arms.on(scale, 'pretrain')}, as many looks at each picture for all"
            ),
            published=published.TABLE5_PATCHES,
            published_is="accuracy in % on ImageNet, pre-trained on ImageNet-21k",
        ),
        Experiment(
            name="resolution",
            title="Fine-tuning at a higher resolution",
            question="Does it help to fine-tune at a higher resolution than that of pre-training?",
            source="section 3.2",
            arms=arms.resolutions,
            measures=arms.of_tuning,
            published=published.AUGREG,
            published_is="accuracy in % on ImageNet of AugReg's weights from ImageNet-21k, as timm measured it",
        ),
        Experiment(
            name="adam-vs-sgd",
            title="Adam or SGD for pre-training ResNets",
            question="Are ResNets better transferred when they were pre-trained with Adam?",
            source="appendix D.1, Table 7",
            arms=arms.optimizers,
            measures=arms.of_tuning,
            published=published.TABLE7,
            published_is="mean accuracy in % over five data sets, pre-trained on JFT",
        ),
        Experiment(
            name="masked",
            title="Self-supervision by masked patches",
            question="Is predicting masked patches better than nothing, and does it come up to supervision?",
            source="section 4.6 and appendix B.1.2",
            arms=arms.masked,
            measures=arms.of_tuning,
            published=published.MASKED,
            published_is="accuracy in % on ImageNet, ViT-B/16, pre-trained on JFT",
        ),
        Experiment(
            name="fig3",
            title="Pre-training set and model size",
            question="Does a larger set to pre-train on help a large model more than a small one?",
            source="section 4.3, Figure 3; Table 5 has the numbers",
            arms=arms.datasets,
            measures=arms.of_tuning,
            published=published.TABLE5,
            published_is="accuracy in % on ImageNet",
            axis="set to pre-train on",
            figure="lines",
        ),
        Experiment(
            name="fig4",
            title="Few-shot accuracy against pictures of pre-training",
            question="Who makes more of few pictures of pre-training, who of many?",
            source="section 4.3, Figure 4",
            arms=arms.few_shots,
            measures=lambda scale: (
                f"{scale.shots}-shot linear accuracy in % on {arms.on(scale, 'tune')}, features as they stand"
            ),
            published=(),
            published_is="a figure without numbers: ViT-B/32 is behind ResNet-50x1 at 9 M pictures of JFT, ahead from 90 M on; "
            "ViT-L/16 and ResNet-152x2 likewise",
            axis="pictures of pre-training",
            figure="lines",
        ),
        Experiment(
            name="fig5",
            title="Accuracy against compute of pre-training",
            question="Who makes more of the same compute: ViT, hybrid or ResNet?",
            source="section 4.4, Figure 5; Table 6 has the numbers",
            arms=arms.computes,
            measures=arms.of_tuning,
            published=published.TABLE6,
            published_is="accuracy in % on ImageNet against exaFLOPs of pre-training on JFT",
            axis="compute of pre-training, in PFLOP",
            over_compute=True,
            figure="lines",
        ),
        Experiment(
            name="table2",
            title="Transfer",
            question="How good are the largest models on several sets, over three tunings?",
            source="section 4.2, Table 2",
            arms=arms.transfer,
            measures=lambda scale: (
                "accuracy in % on test after tuning, mean and deviation over tunings of one pre-training"
            ),
            published=published.TABLE2,
            published_is="accuracy in %, mean and standard deviation over three fine-tunings",
        ),
        Experiment(
            name="fig2",
            title="VTAB by groups",
            question="On which kinds of tasks do ViTs lead, on which ResNets?",
            source="section 4.2, Figure 2; Table 9 has the numbers",
            arms=arms.vtab_tasks,
            measures=lambda scale: "mean accuracy in % over the tasks of a group, 1,000 training pictures each",
            published=published.TABLE9,
            published_is="mean accuracy in % over the tasks of a group of VTAB-1k",
            fold=arms.in_groups,
        ),
        Experiment(
            name="fig7",
            title="What is inside",
            question="Do deeper layers look further away, and do position embeddings learn rows and columns?",
            source="section 4.5, Figure 7",
            arms=arms.insides,
            measures=lambda scale: (
                f"figures of models trained on {arms.on(scale, 'pretrain')} and of the same networks untrained, the mean of "
                f"{inside.DRAWS} for each seed. Depth: the rank correlation of the heads' attention distances with their depth. "
                "Grid: the share of the position embeddings' variance that one vector for each row and column explains. Lines: "
                "by how much more alike (cosine) patches of one line are than patches as far apart off it"
            ),
            published=(),
            published_is="a figure without numbers: attention distance grows with depth in ViT-L/16; position embeddings of "
            "ViT-L/32 are alike within rows and columns",
            percent=False,
        ),
    )
}
OTHERS = ("vtab", "vtab-lite", "table1", "claims")
"""The others: VTAB for somebody's weights, with its own data or what every machine has; the sizes; all claims."""
