"""Tables of what gpu_pipeline.py found: what follows from several parts, for the terminal and for documents."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]

PEERS = ("loop ", "compile ")


def put_together(report: dict[str, Any]) -> None:
    """Adds to each row of ours its share of the measured matrix rates, and how many times as fast it is as its peers.

    "total": from the PET in memory to the CT, against the loop without its preprocessing and resampling; "network":
    encoder, lookup and decoder alone.
    """
    rows = report["parts"]
    report["rtx_accepts"] = rows.get("rtx accepts", {}).get("ways")
    rates = rows.get("rates", {}).get("tflops", {})
    for row in _ours(report).values():
        for half in ("encoder", "decoder"):
            row[half]["of_rate"] = {name: row[half]["tflops"] / rate for name, rate in rates.items()}
        row["speedup"] = {
            kind: {
                name: peer[f"{kind}_s"] / row[f"{kind}_s"]
                for name, peer in rows.items()
                if name.startswith(PEERS) and f"{kind}_s" in peer
            }
            for kind in ("total", "network")
        }


def markdown(report: dict[str, Any]) -> str:
    """The tables, and what did not run."""
    rates = report["parts"].get("rates", {}).get("tflops", {})
    lines = [
        "| sctrt | total [s] | outside engines | host alone | GPU memory [GB] | encoder [TFLOP/s] | decoder [TFLOP/s] |"
        " of matrix rate | mean [HU] | 99.9 % [HU] | flipped |",
        f"| --- |{' ---: |' * 10}",
    ]
    lines += [f"| {name} | {' | '.join(_cells(row))} |" for name, row in _ours(report).items()]
    lines += ["", "| beside it | whole volume [s] | network alone [s] | slices timed |", "| --- | ---: | ---: | ---: |"]
    for name, row in report["parts"].items():
        if name.startswith(PEERS) and "network_s" in row:
            timed = sum(plane["timed"] for plane in row["planes"].values())
            whole = f"{row['total_s']:.1f}" if "total_s" in row else "-"
            lines.append(f"| PyTorch {name} | {whole} | {row['network_s']:.1f} | {timed} |")
    lines += ["", *(f"- {name}, measured: {rate:.0f} TFLOP/s" for name, rate in rates.items())]
    lines += [f"- {name}: {row['failed']}" for name, row in report["parts"].items() if "failed" in row]
    return "\n".join([*lines, "", f"{summary(report)}\n"])


def summary(report: dict[str, Any]) -> str:
    """What the numbers are of, in one paragraph."""
    z, y, x = report["shape_zyx"]
    return (
        f"{x} x {y} x {z} voxels (x, y, z; smooth body, seed {report['seed']}), {report['model']['name']}, "
        f"{report.get('gpu', report['device'])}, commit {report['commit']}, `{report['command']}`."
    )


def _ours(report: dict[str, Any]) -> dict[str, Row]:
    return {name: row for name, row in report["parts"].items() if name.startswith("sctrt ") and "total_s" in row}


def _cells(row: Row) -> list[str]:
    low, high = row["spread_s"]
    memory = row["peak_device_mb"]
    shares = [min(row[half].get("of_rate", {}).values(), default=None) for half in ("encoder", "decoder")]
    parity = row.get("parity")
    return [
        f"{row['total_s']:.2f} ({low:.2f} to {high:.2f})",
        f"{row['outside_engines_share']:.1%}",
        f"{row['host_share']:.1%}",
        "-" if memory is None else f"{memory / 1e3:.1f}",
        *(f"{row[half]['tflops']:.1f}" for half in ("encoder", "decoder")),
        " / ".join("-" if share is None else f"{share:.0%}" for share in shares),
        *([f"{parity['mean_hu']:.3f}", f"{parity['p99.9_hu']:.2f}"] if parity else ["-", "-"]),
        f"{parity['flipped_share']:.3%}" if parity else "-",
    ]
