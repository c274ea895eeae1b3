"""Published weights that have a name here, each pinned by the sha256 of its file.

Hub files are also pinned by the full revision. The sha256 of OpenAI's archives are the ones in their URLs;
LAION's were taken from the repositories at the commits named.
"""

from __future__ import annotations

from dataclasses import dataclass

_OPENAI_URL = "https://openaipublic.azureedge.net/clip/models"
_LAION_V1_URL = (
    "https://raw.githubusercontent.com/LAION-AI/aesthetic-predictor/6d122adad522ab246644d9dc1c6d7a3810ee255f"
)
_LAION_V2_URL = (
    "https://raw.githubusercontent.com/christophschuhmann/improved-aesthetic-predictor/"
    "6934dd81792f086e613a121dbce43082cb8be85e"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFile:
    """One file that holds published weights: on the Hugging Face hub (`repo`) or at a `url`.

    `filename` is what it is called in a model directory; `hub_path` is its path in the repo. `sha256` is
    empty where only the revision pins it.
    """

    filename: str
    sha256: str = ""
    repo: str = ""
    revision: str = ""
    hub_path: str = ""
    url: str = ""

    @property
    def source(self) -> str:
        """Where it comes from, as one address that includes the pin."""
        if self.repo:
            return f"https://huggingface.co/{self.repo}/resolve/{self.revision}/{self.hub_path}"
        return self.url


def _hub(repo: str, revision: str, hub_path: str, sha256: str) -> PublishedFile:
    suffix = hub_path.rpartition(".")[2]
    return PublishedFile(
        filename=f"{repo.rpartition('/')[2]}.{suffix}",
        sha256=sha256,
        repo=repo,
        revision=revision,
        hub_path=hub_path,
    )


def _archive(filename: str, sha256: str) -> PublishedFile:
    return PublishedFile(filename=filename, sha256=sha256, url=f"{_OPENAI_URL}/{sha256}/{filename}")


OPENAI: dict[str, tuple[PublishedFile, ...]] = {
    "ViT-L-14": (
        _hub(
            "openai/clip-vit-large-patch14",
            "32bd64288804d66eefd0ccbe215aa642df71cc41",
            "model.safetensors",
            "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
        ),
        _archive("ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
    ),
    "ViT-L-14-336": (
        _hub(
            "openai/clip-vit-large-patch14-336",
            "ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
            "pytorch_model.bin",
            "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801",
        ),
        _archive("ViT-L-14-336px.pt", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"),
    ),
    "ViT-B-32": (
        _hub(
            "openai/clip-vit-base-patch32",
            "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
            "pytorch_model.bin",
            "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
        ),
        _archive("ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    ),
    "ViT-B-16": (
        _hub(
            "openai/clip-vit-base-patch16",
            "57c216476eefef5ab752ec549e440a49ae4ae5f3",
            "pytorch_model.bin",
            "ec89c7b09c749a60aae3c9cd910516f24b58214a7df060b48962d14c469cfbf0",
        ),
        _archive("ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
    ),
}
"""OpenAI's own CLIP weights by encoder, the same numbers in each file, in the order they are tried."""

LAION_V2 = (
    PublishedFile(
        filename="sac+logos+ava1-l14-linearMSE.pth",
        sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
        url=f"{_LAION_V2_URL}/sac%2Blogos%2Bava1-l14-linearMSE.pth",
    ),
    # Last, because only its revision is known: its file can't be told from another one in a model directory.
    _hub(
        "ttj/sac-logos-ava1-l14-linearMSE",
        "1e77fa05081323d99725fc40a9bf9f88180490e7",
        "model.safetensors",
        "",
    ),
)
"""improved-aesthetic-predictor's head for ViT-L/14 embeddings, on a scale of about 1 to 10."""


def _laion_v1(name: str, sha256: str) -> tuple[PublishedFile, ...]:
    return (PublishedFile(filename=name, sha256=sha256, url=f"{_LAION_V1_URL}/{name}"),)


LAION_V1: dict[str, tuple[PublishedFile, ...]] = {
    "ViT-L-14": _laion_v1(
        "sa_0_4_vit_l_14_linear.pth", "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba"
    ),
    "ViT-B-32": _laion_v1(
        "sa_0_4_vit_b_32_linear.pth", "c7b14cead230694acc7b9447974d3cad78003c72da032e402a303b6c2429e85f"
    ),
    "ViT-B-16": _laion_v1(
        "sa_0_4_vit_b_16_linear.pth", "8ad3923d7ecf019df20ecd2ab5542a3075fbba0278d239c0371345f3d7fcbde0"
    ),
}
"""LAION's first, linear heads by the encoder they were trained on, each on a scale of its own."""


def openai_model(encoder: str) -> str:
    """The name OpenAI's weights go by: `ViT-L-14-quickgelu` and `ViT-L-14` are one model."""
    return encoder.removesuffix("-quickgelu")


OPENAI_SHA256 = frozenset(file.sha256 for files in OPENAI.values() for file in files)
"""Files that are OpenAI's whatever they are called: their tower is a QuickGELU one."""
