"""Measure speed and fidelity on this machine, all in one run.

    python scripts/bench.py                       # all, an hour on two cores
    python scripts/bench.py --models lite0-minilm --rounds 3 --photos imagenet

Speed: each method runs in a process of its own, round after round, so that a noisy moment meets them
all and a peak of memory is one method's.  RN50 and ViT-B/16 have random weights, right for time only.
A model that is measured again replaces its figures in the file, and the others stay.
Fidelity: every photo and scene is encoded exactly once, and selections are compared with that.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

import vlscore
from vlscore import scenes

FAST = 64  # maps that go through the encoder on the fast path
SIZES = {  # of CLIP: embedding, input, layers, width, patch, and the text encoder
    "RN50": (1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12),
    "ViT-B/16": (512, 224, 12, 768, 16, 77, 49408, 512, 8, 12),
}
PROMPTS = ("an image of a dog.", "an image of a chair.")
KEEPS = (8, 16, 32, 48, 64, 96, 128, 256)
LAYERS = {"scenes-rn": ("layer3", 0.1, 0.4)}  # a layer that is not the model's last, with its own τ and α


def load(name: str, folder: Path) -> vlscore.Model:
    """A model by name; CLIP's shapes and open_clip's architectures have random weights."""
    if name not in SIZES and not name.startswith("open_clip:"):
        return vlscore.load_model(name)
    path = folder / f"{name.replace('/', '-').replace(':', '-')}.pt"
    if not path.exists():
        torch.manual_seed(0)
        torch.save(build_random(name).half().state_dict(), path)
    return vlscore.load_model(str(path) if name in SIZES else f"{name}/{path}")


def build_random(name: str) -> torch.nn.Module:
    """A network with random weights."""
    if name in SIZES:
        return vlscore.import_clip().model.CLIP(*SIZES[name])
    import open_clip

    return open_clip.create_model(name.removeprefix("open_clip:"))


# ── Speed ──────────────────────────────────────────────────────────────────────────────────────────


def ours(model, image, text, keep=None, precision="auto"):
    """VL-Score by this module: saliency and boxes."""
    encoding = vlscore.encode(model, image, keep=keep, precision=precision)
    return answer(encoding, text), partial(answer, encoding)


def answer(encoding, text):
    """Saliency and boxes of a further prompt."""
    heat = vlscore.saliency(encoding, text, encoding.temperature)
    vlscore.find_boxes(heat, encoding)
    return heat


def grad_cam(model, image, text):
    """pytorch-grad-cam's ScoreCAM at its defaults."""
    pixels, layer = model.preprocess(image), model.layers[-1]
    return vlscore.compute_cam("ScoreCAM", model, pixels, text, layer), None


def torchcam(model, image, text):
    """torchcam's ScoreCAM at its defaults."""
    from torchcam.methods import ScoreCAM

    scorer = vlscore.CosineScorer(model, text)
    pixels = model.preprocess(image)[None].to(model.device)
    with ScoreCAM(scorer, model.gradient_module(model.layers[-1])) as cam:
        return cam(0, scorer(pixels))[0][0], None


def plain_loop(model, image, text):
    """The formula of VL-Score, a map at a time."""
    pixels = model.preprocess(image)
    maps = model.feature_maps(pixels[None])[0].cpu()
    base = (model.encode_image(torch.zeros_like(pixels)[None]).cpu() @ text)[0]
    total, weight = torch.zeros(maps.shape[1:]), 0.0
    for each in maps:
        masked = pixels * vlscore.make_masks(each[None], model.input_size)[0]
        score = (model.encode_image(masked[None]).cpu() @ text)[0]
        if score > base:
            power = ((score - base) / model.temperature).exp()
            total, weight = total + power * each, weight + power
    return (total / weight).relu(), None


METHODS = {
    "exact": ours,
    "fast": partial(ours, keep=FAST),
    "pytorch-grad-cam": grad_cam,
    "torchcam": torchcam,
    "plain loop": plain_loop,
}


def measure(name: str, method: str, photo: Path, folder: Path) -> dict:
    """Time one method on one photo, in a process that does nothing else."""
    model = load(name, folder)
    texts = model.encode_text(list(PROMPTS)).cpu()
    image, blank = (vlscore.load_image(photo), torch.zeros(16, 3, *[model.input_size] * 2))
    vlscore.fast_encoder(model)(blank)  # compiles
    model.encode_image(blank)
    is_gpu = model.device.type == "cuda"
    if is_gpu:  # where each size of a batch is compiled for itself
        METHODS[method](model, image, texts[0])
        torch.cuda.reset_peak_memory_stats()
    loaded = peak()
    first, (heat, further) = timed(METHODS[method], model, image, texts[0])
    above = peak() - loaded
    if first < 10:  # a short time is measured again
        again = [timed(METHODS[method], model, image, texts[0])[0] for _ in range(4)]
        first = statistics.median([first, *again])
    prompt = first
    if further is not None:
        prompt = statistics.median(timed(further, texts[1])[0] for _ in range(21))
    result = {"seconds": first, "prompt": prompt, "megabytes": above, "peak": peak()}
    if is_gpu:
        result["card"] = torch.cuda.max_memory_allocated() / 2**20
    return result | {"saliency": None if heat is None else heat.tolist()}


def timed(call, *arguments):
    """Seconds that a call took, and what it returned."""
    start = time.perf_counter()
    result = call(*arguments)
    return time.perf_counter() - start, result


def peak() -> float:
    """The most memory that this process has held, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def alone(function, *arguments):
    """Call a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def speed(name: str, photos: list[Path], folder: Path) -> dict:
    """The medians of each method over the photos, a round each."""
    from tqdm import tqdm

    methods = list(METHODS)
    if load(name, folder).is_vit:
        methods.remove("torchcam")  # which reads no tokens
    if name in SIZES:
        methods.remove("plain loop")  # exact is compared with it on trained models
    todo = [(method, photo) for photo in photos for method in methods]
    found = {method: [] for method in methods}
    for method, photo in tqdm(todo, desc=name):
        found[method].append(alone(measure, name, method, photo, folder))
    rows = {}
    for method, runs in found.items():
        keys = {"seconds", "prompt", "megabytes", "peak", "card"} & set(runs[0])
        rows[method] = {key: statistics.median(run[key] for run in runs) for key in sorted(keys)}
        if method in ("exact", "fast") and "plain loop" in found:  # the same formula
            pairs = [(run["saliency"], loop["saliency"]) for run, loop in zip(runs, found["plain loop"])]
            rows[method]["correlation"] = min(correlation(*pair) for pair in pairs)
    return rows


def reference(name: str, photo: Path, folder: Path) -> dict:
    """Operations of a pass, and the rate at which this machine multiplies matrices in the passes' precision.

    No bound: other algorithms multiply less (Winograd), and two sizes of matrices have two rates.
    """
    from torch.utils.flop_counter import FlopCounterMode

    model = load(name, folder)
    precision = vlscore.choose_precision("auto", model.device)
    matrix = torch.rand(8192 if model.device.type == "cuda" else 2048, device=model.device)
    matrix = matrix.to(getattr(torch, precision)).expand(len(matrix), -1).contiguous()
    with FlopCounterMode(display=False) as counter:
        model.encode_image(torch.zeros(1, 3, *[model.input_size] * 2))
    maps = model.feature_maps(model.preprocess(vlscore.load_image(photo))[None])[0]
    rate = 2 * len(matrix) ** 3 / min(timed(multiply, matrix)[0] for _ in range(20))
    facts = {"maps": len(maps), "varying": int(vlscore.varies(maps).sum()), "precision": precision}
    return facts | {"flop": counter.get_total_flops(), "rate": rate}


def multiply(matrix):
    """A matrix product, waited for."""
    found = matrix @ matrix
    if found.is_cuda:
        torch.cuda.synchronize()
    return found


# ── Fidelity ───────────────────────────────────────────────────────────────────────────────────────


def correlation(first, second) -> float:
    """Pearson's r of two saliency maps; 1 if they are equal or both absent, 0 if one is constant."""
    if first is None or second is None:
        return float(first is None and second is None)
    pair = torch.stack([torch.as_tensor(each).flatten() for each in (first, second)])
    if torch.equal(*pair):
        return 1.0
    return float(torch.corrcoef(pair.double())[0, 1].nan_to_num(0.0))


def strongest(encoding, keep):
    """The maps of largest standard deviation, and nothing of the others."""
    rows = encoding.maps.flatten(1).std(1).topk(min(keep, len(encoding.maps))).indices
    return replace(encoding, maps=encoding.maps[rows], mask_embeddings=encoding.mask_embeddings[rows])


def chosen(encoding, keep):
    """The maps that `select_maps` takes, and nothing of the others."""
    rows = vlscore.select_maps(encoding.maps, keep)
    return replace(encoding, maps=encoding.maps[rows], mask_embeddings=encoding.mask_embeddings[rows])


def predicted(encoding, keep):
    """The same, with the embeddings of the others predicted: `encode` with `keep`."""
    rows = vlscore.select_maps(encoding.maps, keep)
    every = vlscore.predict_embeddings(encoding.maps, rows, encoding.mask_embeddings)
    return replace(encoding, mask_embeddings=every)


SELECTIONS = {"largest deviation": strongest, "chosen": chosen, "chosen and predicted": predicted}


def fidelity(name: str, root: Path) -> dict:
    """How near each selection comes to the exact saliency and boxes, over a data set."""
    from tqdm import tqdm

    model, dataset = (vlscore.load_model(name, "cpu"), vlscore.read_dataset(root))
    layer, tau, alpha = LAYERS.get(name, (None, model.temperature, model.threshold))
    texts = {label: vlscore.class_embedding(model, names) for label, names in dataset.classes.items()}
    rows = {}
    for photo in tqdm(dataset.photos, desc=f"{name}, fidelity"):
        exact = vlscore.encode(model, photo.path, layer, precision="float32")
        exact = replace(exact, temperature=tau, threshold=alpha)
        wanted = look(exact, texts[photo.label], photo)
        rows.setdefault(("exact", len(exact.maps)), []).append(wanted + wanted)
        for keep in KEEPS:
            for selection, select in SELECTIONS.items():
                if keep < len(exact.maps):
                    got = look(select(exact, keep), texts[photo.label], photo)
                    rows.setdefault((selection, keep), []).append(wanted + got)
    curve = [{"selection": key[0], "keep": key[1], **agreement(each)} for key, each in rows.items()]
    return {"data": dataset.layout, "images": len(dataset.photos), "layer": layer, "curve": curve}


def look(encoding, text, photo):
    """Saliency, boxes and box IoU of one encoding."""
    heat = vlscore.saliency(encoding, text, encoding.temperature)
    boxes = vlscore.find_boxes(heat, encoding)
    return heat, boxes, vlscore.box_iou(boxes, photo.boxes)


def agreement(rows) -> dict:
    """Over images: correlation of saliency, same hit or miss, IoU of the first boxes, GT-known."""
    r = [correlation(wanted, got) for wanted, _, _, got, _, _ in rows]
    same = [(before > 0.5) == (after > 0.5) for _, _, before, _, _, after in rows]
    boxes = [vlscore.box_iou(got[:1], wanted[:1]) for _, wanted, _, _, got, _ in rows if wanted]
    return {
        "correlation": float(np.mean(r)),
        "worst": min(r),
        "same_hit": float(np.mean(same)),
        "box_iou": statistics.median(boxes) if boxes else None,
        "gt_known": float(np.mean([after > 0.5 for *_, after in rows])),
    }


# ── Throughput ─────────────────────────────────────────────────────────────────────────────────────


def throughput(name: str, root: Path, keep: int) -> float:
    """Images a second of `evaluate`."""
    model, dataset = (vlscore.load_model(name, "cpu"), vlscore.read_dataset(root))
    vlscore.evaluate(model, replace(dataset, photos=dataset.photos[:1]), keep=1)  # compiles
    seconds, _ = timed(partial(vlscore.evaluate, keep=keep), model, dataset)
    return len(dataset.photos) / seconds


# ── All of it ──────────────────────────────────────────────────────────────────────────────────────


def machine() -> dict:
    """What the times were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), "CPU")
    levels = torch.cpu.get_capabilities()
    best = next((level for level in ("amx_bf16", "avx512_bf16", "avx512_f", "avx2") if levels.get(level)), "")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{name}, {best}"
    versions = {"torch": torch.__version__, "openvino": version("openvino")}
    return {"device": device, "threads": torch.get_num_threads(), "fast": FAST, **versions}


def table(result: dict) -> str:
    """Ratios of each model, as text."""
    lines = [f"{result['machine']['device']}, {result['machine']['threads']} threads"]
    for name, rows in result["speed"].items():
        lines += ["", f"{name}: {'':14} seconds   exact is   fast is  peak MB  a further prompt"]
        for method, row in rows.items():
            ratios = [row["seconds"] / rows[each]["seconds"] for each in ("exact", "fast")]
            shown = "  ".join(f"{ratio:8.1f}×" for ratio in ratios)
            prompt = f"{1000 * row['prompt']:10.1f} ms"
            lines.append(f"  {method:18} {row['seconds']:10.2f} {shown} {row['megabytes']:8.0f} {prompt}")
        lines += rates(result, name)
    for name, facts in result["fidelity"].items():
        lines += ["", f"{name}, {facts['images']} images: passes  correlation  same hit  box IoU  GT-known"]
        for row in facts["curve"]:
            figures = " ".join(
                f"{row[key]:9.4f}" for key in ("correlation", "same_hit", "box_iou", "gt_known")
            )
            lines.append(f"  {row['selection']:22} {row['keep']:5} {figures}")
    return "\n".join(lines)


def rates(result: dict, name: str) -> list[str]:
    """Passes a second of exact and fast, as a share of the machine's matrix products; and a card's memory."""
    facts, lines = result["reference"].get(name), []
    for method in ("exact", "fast") if facts else ():
        row = result["speed"][name][method]
        passes = min(FAST, facts["varying"]) if method == "fast" else facts["varying"]
        a_second = passes / row["seconds"]
        share = a_second * facts["flop"] / facts["rate"]
        card = f", {row['card']:.0f} MB of the card at most" if "card" in row else ""
        lines.append(
            f"  {method}: {a_second:.0f} passes a second, {share:.0%} of {facts['precision']} products{card}"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="lite0-minilm,scenes-rn,scenes-vit,RN50,ViT-B/16")
    parser.add_argument("--rounds", type=int, default=3, help="photos a method; RN50 and ViT-B/16 have one")
    parser.add_argument("--photos", default="data/photos", help="data set for lite0-minilm's fidelity")
    parser.add_argument("--out", default="data/bench.json")
    options = parser.parse_args()
    out = Path(options.out)
    result = {"speed": {}, "reference": {}, "fidelity": {}}
    if out.exists():
        result |= json.loads(out.read_text())
    result["machine"] = machine()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        photos = [photo.path for photo in vlscore.read_dataset("data/photos").photos]
        drawn = scenes.write_scenes(folder / "scenes", 100, 31, (224, 224)) or folder / "scenes"
        for name in options.models.split(","):
            few = photos[: 1 if name in SIZES else options.rounds]
            result["speed"][name] = speed(name, few, folder)
            result["reference"][name] = alone(reference, name, few[0], folder)
            if name not in SIZES:
                root = options.photos if name == "lite0-minilm" else drawn
                result["fidelity"][name] = alone(fidelity, name, root)
            if name == "lite0-minilm":
                result["throughput"] = alone(throughput, name, "data/photos", 128)
            vlscore.write_whole(out, json.dumps(result, indent=1).encode())
    print(table(result))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except vlscore.VLScoreError as error:
        sys.exit(f"bench: {error}")
