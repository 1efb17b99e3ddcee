"""Measure latency, throughput, peak memory, parameters and FLOPs of a method, or the speed of degradations."""

from __future__ import annotations

import argparse
from typing import Any

EXAMPLES = """examples:
  bench perf method=refine
  bench perf method=refine size=paper
  bench perf method=refine trainer.threads=2 --json
  bench perf degradation=gfpgan
  bench perf degradation=all size=512 images=8 threads=1
  bench perf metrics=offline images=1000 size=512
  bench perf method=restorerid against=pipeline
  bench perf method=restorerid against=pipeline size=paper batch_size=4 images=1000 --json
  bench perf method=pfstorer against=plain

Pictures are random and nothing is scored; absent weights are replaced by random ones, and the output
says so. Without size=... it measures demo, and paper where there is a GPU. Degradations are timed beside
the functions of BasicSR and OpenCV that do the same, where BasicSR is installed; metrics beside the loop of
pyiqa's documentation (loop=100 pictures of it). against=pipeline times a diffusion method beside the loop of
diffusers' documentation with the same model, and its fast preset; images=N is the length of the row of pictures
whose last ones must take no longer than its first (1000 on a GPU, 20 on a CPU; 0 leaves it out). against=plain times
how a method that is tuned for each person learns one, beside the same learning without any saving."""

DEFAULT_SECONDS = 20.0
DEGRADATION_OPTIONS = {"size": 512, "images": 16, "threads": 1}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.usage = (
        "bench perf method=NAME|degradation=NAME|metrics=offline [size=NAME|PIXELS] [against=pipeline|plain] "
        "[key=value ...] [--seconds S] [--json]"
    )
    parser.add_argument("--seconds", type=float, help="time for each of the two timings of a method (default: 20)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(takes_overrides=True)


def run(arguments: argparse.Namespace) -> int:
    """Measures."""
    kinds = {word.partition("=")[0] for word in arguments.overrides}
    if "degradation" in kinds:
        return _run_degradation(arguments)
    if "metrics" in kinds and "method" not in kinds:
        from bench.runs.panel_benchmark import run_words

        return run_words(arguments.overrides, arguments.json)
    arguments.seconds = DEFAULT_SECONDS if arguments.seconds is None else arguments.seconds
    if "against" in kinds:
        return _run_against(arguments)
    return _run_method(arguments)


def _run_method(arguments: argparse.Namespace) -> int:
    import json
    import os

    from bench.config import compose

    config = compose("run", arguments.overrides)
    os.environ.setdefault("OMP_NUM_THREADS", str(config["trainer"]["threads"]))
    from bench.report.terminal import number, print_table
    from bench.runs.performance import measure
    from bench.runs.quiet import quiet_lightning

    quiet_lightning()
    result = measure(config, arguments.seconds)
    if arguments.json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return 0
    columns = [
        "method", "px", "latency p50", "p95", "images/s", "at batch", "peak memory", "growth", "parameters", "GFLOPs",
        "dtype",
    ]  # fmt: skip
    rows = []
    for one in result["sizes"]:
        rows.append(
            [
                f"{result['method']}@{one['size']}" if one["size"] else result["method"],
                str(one["side"]),
                f"{number(one['latency_ms']['p50'])} ms",
                f"{number(one['latency_ms']['p95'])} ms",
                number(one["throughput"]["images_per_second"]),
                str(one["throughput"]["batch_size"]),
                f"{one['peak_memory_mb']:.0f} MB",
                f"{one['memory_growth_mb']:.0f} MB",
                f"{one['parameters']:,}",
                number(one["gflops"]),
                one["dtype"],
            ]
        )
    place = result["device"] if result["device"] != "cpu" else result["hardware"]["processor"]
    print_table(
        columns,
        rows,
        f"{place}, {_threads(result)}, precision {result['precision']}, torch {result['versions']['torch']}",
    )
    for one in result["sizes"]:
        for note in one["notes"]:
            print(f"{one['size'] or result['method']}: {note}")
    return 0


def _run_against(arguments: argparse.Namespace) -> int:
    import json
    import os

    from bench.config import compose
    from bench.errors import unknown_name

    own = {word.partition("=")[0]: word.partition("=")[2] for word in arguments.overrides}
    if own["against"] not in ("pipeline", "plain"):
        raise unknown_name("value of against", own["against"], ["pipeline", "plain"])
    if own["against"] == "plain":
        return _run_against_plain(arguments)
    images = None if own.get("images") is None else _whole_number("images", own["images"])
    words = [word for word in arguments.overrides if word.partition("=")[0] not in ("against", "images")]
    config = compose("run", words)
    os.environ.setdefault("OMP_NUM_THREADS", str(config["trainer"]["threads"]))
    from bench.report.terminal import number, print_table
    from bench.runs.pipeline_benchmark import measure_against_pipeline
    from bench.runs.quiet import quiet_lightning

    quiet_lightning()
    result = measure_against_pipeline(config, arguments.seconds, images)
    result["command"] = " ".join(["bench perf", *arguments.overrides])
    if arguments.json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return 0
    print(result["command"])
    place = result["device"] if result["device"] != "cpu" else result["hardware"]["processor"]
    columns = [
        "side", "steps", "dtype", "s/image", "processor s", "× diffusers", "largest difference", "mean", "peak memory",
        "rounds",
    ]  # fmt: skip
    for one in result["sizes"]:
        rows = [
            [
                side["name"],
                str(side["steps"]),
                side["dtype"],
                number(side["seconds_per_image"]),
                number(side["processor_seconds_per_image"]),
                f"{side['faster_than_diffusers']:.2f}",
                "" if side["largest_difference_255"] is None else f"{side['largest_difference_255']:.4f}/255",
                "" if side["mean_difference_255"] is None else f"{side['mean_difference_255']:.4f}/255",
                "" if side["peak_memory_mb"] is None else f"{side['peak_memory_mb']:.0f} MB",
                str(side["rounds"]),
            ]
            for side in one["sides"]
        ]
        label = f"{result['method']}@{one['size']}" if one["size"] else result["method"]
        title = f"{label}, {one['side']} px, batch {result['batch_size']}; {place}, {_threads(result)}"
        print_table(columns, rows, f"{title}, torch {result['versions']['torch']}")
        print(f"diffusers is this loop:\n\n{one['pattern']}\n")
        for line in _sentences(one):
            print(line)
    return 0


def _run_against_plain(arguments: argparse.Namespace) -> int:
    import json
    import os

    from bench.config import compose

    words = [word for word in arguments.overrides if word.partition("=")[0] != "against"]
    config = compose("run", words)
    os.environ.setdefault("OMP_NUM_THREADS", str(config["trainer"]["threads"]))
    from bench.report.terminal import number, print_table
    from bench.runs.personalisation_benchmark import measure_personalisation
    from bench.runs.quiet import quiet_lightning

    quiet_lightning()
    result = measure_personalisation(config)
    result["command"] = " ".join(["bench perf", *arguments.overrides])
    if arguments.json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return 0
    print(result["command"])
    place = result["device"] if result["device"] != "cpu" else result["hardware"]["processor"]
    columns = ["iterations", "s/person", "ours s/iteration", "plain s/iteration", "× faster", "state", "peak memory"]
    for one in result["sizes"]:
        row = [
            str(one["iterations"]),
            number(one["seconds_per_person"]),
            number(one["ours"]),
            number(one["plain"]),
            f"{one['ratio']:.2f}",
            f"{one['state_bytes'] / 1e6:.2f} MB",
            f"{one['peak_memory_mb']:.0f} MB",
        ]
        label = f"{result['method']}@{one['size']}" if one["size"] else result["method"]
        title = f"{label}, {one['side']} px; {place}, {_threads(result)}, precision {result['precision']}"
        print_table(columns, [row], f"{title}, torch {result['versions']['torch']}")
        print(f"plain is this, written down as the paper tells it:\n\n{one['pattern']}\n")
        for what, found in (("people", one["by_people"]), ("references", one["by_references"])):
            grown = ", ".join(f"{count}: {seconds:.2f} s" for count, seconds in found.items())
            print(f"by number of {what} ({one['short']['iterations']} iterations each): {grown}")
        for note in one["notes"]:
            print(f"{one['size'] or 'note'}: {note}")
    return 0


def _sentences(one: dict[str, Any]) -> list[str]:
    compiled = "" if one["compiled_ratio"] is None else f"; compiled {one['compiled_ratio']:.2f} times"
    training, flat = one["training"], one["flat"]
    lines = [
        f"ours is {one['ratio']:.2f} times as fast as diffusers{compiled}",
        f"peak memory {one['peak_memory_mb']:.0f} MB",
    ]
    if one["fast_ratio"] is not None:
        lines.insert(1, f"the fast preset is {one['fast_ratio']:.2f} times as fast as ours")
    if flat:
        lines.append(
            f"{flat['images']} images: {flat['first']:.3f} s for each of the first {flat['ends']}, "
            f"{flat['last']:.3f} s for each of the last {flat['ends']} (× {flat['ratio']:.2f})"
        )
    utilisation = training["model_flops_utilisation"]
    lines.append(
        f"training (stage {training['stage']}, batch {training['batch_size']}, {training['dtype']}): "
        f"{training['samples_per_second']:.2f} samples/s"
        + ("" if training["peak_memory_mb"] is None else f", peak memory {training['peak_memory_mb']:.0f} MB")
        + ("" if utilisation is None else f", model FLOPs utilisation {utilisation:.0%}")
    )
    if training["faster_than_diffusers"] is not None:
        lines.append(
            f"that is {training['faster_than_diffusers']:.2f} times as fast as this step:\n\n{training['pattern']}\n"
        )
    return lines + [f"{one['size'] or 'note'}: {note}" for note in one["notes"]]


def _whole_number(key: str, value: str) -> int:
    from bench.errors import UsageError

    if not value.isdecimal():
        raise UsageError(f"{key} must be a whole number, got {value!r}.")
    return int(value)


def _run_degradation(arguments: argparse.Namespace) -> int:
    import json
    import os

    from bench.errors import UsageError

    if arguments.seconds is not None:
        raise UsageError("--seconds is for methods; degradations take images=N, the number of pictures.")
    name, options = _degradation_options(arguments.overrides)
    os.environ.setdefault("OMP_NUM_THREADS", str(options["threads"]))
    from bench.degradation.benchmark import measure_degradations
    from bench.report.terminal import print_table
    from bench.runs.environment import environment

    result = {**measure_degradations(name, **options), **environment()}
    if arguments.json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return 0
    gpu = ["GPU images/s", "× CPU"] if result["gpu"] else []
    columns = ["degradation", "images/s", "BasicSR/OpenCV", "× faster", "float64 images/s", *gpu, "no counterpart"]
    rows = [
        [
            one["name"],
            f"{one['ours']:.2f}",
            _figure(one["basicsr"]),
            _figure(one["ratio"]),
            f"{one['double']:.2f}",
            *([_figure(one["gpu"]), _figure(one["gpu_ratio"])] if gpu else []),
            ", ".join(one["without_counterpart"]),
        ]
        for one in result["presets"]
    ]
    place = result["hardware"]["processor"]
    title = f"{place}, {_threads(result)}, {result['dtype']}, {result['images']} pictures of {result['size']} px each"
    print_table(columns, rows, title + (f"; {result['gpu']}" if gpu else ""))
    print("× faster compares float32 with float32; frozen and recorded pictures are made in float64")
    print()
    rows = [
        [
            one["name"],
            str(one["calls"]),
            f"{one['ours_ms']:.2f} ms",
            "" if one["basicsr_ms"] is None else f"{one['basicsr_ms']:.2f} ms",
            _figure(one["ratio"]),
            f"{one['share']:.0%}",
        ]
        for one in result["operators"]
    ]
    print_table(["operator", "calls", "per call", "BasicSR/OpenCV", "× faster", "share of time"], rows)
    if result["missing"]:
        print(result["missing"])
    return 0


def _degradation_options(words: list[str]) -> tuple[str, dict[str, int]]:
    """The preset and the whole-number options of `bench perf degradation=…`.

    Raises:
        UsageError: An unknown key, or a value that is no whole number.
    """
    from bench.errors import UsageError, unknown_name

    given: dict[str, str] = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator or not value:
            raise UsageError(f"Cannot understand {word!r}: expected key=value, for instance degradation=gfpgan.")
        if key in given:
            raise UsageError(f"{key} is given twice: {given[key]} and {value}.")
        given[key] = value
    name = given.pop("degradation")
    options = dict(DEGRADATION_OPTIONS)
    for key, value in given.items():
        if key not in options:
            raise unknown_name("key of bench perf degradation=…", key, ["degradation", *options])
        options[key] = _whole_number(key, value)
    return name, options


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _threads(result: dict[str, Any]) -> str:
    return f"{result['threads']} thread{'s' if result['threads'] > 1 else ''} of {result['hardware']['cores']} cores"
