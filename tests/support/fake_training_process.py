"""A stand-in for `python -m core` that learns nothing, in 50 ms: it speaks the same lines and obeys the same rules.

What it does beyond that is in the spec's metadata: {"act": "crash"} and the like.
"""

import hashlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

STEPS = 10
WISHES = {"pause": False, "stop": False, "stepping": False}


def say(type_, **fields):
    print(json.dumps({"type": type_, **fields}), flush=True)


def rate(count):
    return {"value": count / 4, "count": count, "total": 4, "low": 0.0, "high": 1.0}


def report(spec, right, shard=None):
    return {
        "part": shard and {"index": shard[0], "count": shard[1], "first": 4 * (shard[0] - 1)},
        "protocol": spec["evaluation"]["protocol"],
        "examples": 4,
        "seed": spec["seed"],
        "batch_size": 4,
        "eps": spec["eps"],
        "clean": rate(4),
        "robust": {norm: rate(right) for norm in spec["eps"]},
        "union": rate(right),
        "average": right / 4,
        "attacks": [],
        "flags": [],
        "verdicts": {"clean": "1111", "union": "1" * right + "0" * (4 - right)},
        "seconds": 0.1,
    }


def save(folder, kind, name, content, step=STEPS):
    path = folder / name
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    say("saved", kind=kind, path=str(path), sha256=digest, size=len(content), step=step, epoch=step / STEPS)


def evaluate(spec, subject, right, shard=None):
    say("entered", phase="evaluating", subject=subject)
    for done, norm in enumerate(spec["eps"], start=1):
        say("attacked", subject=subject, threat=norm, attack="apgd-ce", robust=right, examples=4, done=done, total=3)
    say("evaluated", subject=subject, report=report(spec, right, shard))


def find_verdicts(folder):
    return max((int(path.read_text()) for path in folder.glob("verdicts-*")), default=0)


def evaluate_only(spec, folder, shard):
    """Of the four points of a shard, as many are right as its number says."""
    wish = spec["metadata"]
    known = find_verdicts(folder)
    if known:
        say("resumed", step=known, epoch=0.0)
    time.sleep(float(wish.get("seconds", "0")))
    if "states" in wish:
        save(folder, "state", f"verdicts-{known + 1}.safetensors", str(known + 1).encode(), known + 1)
    if wish.get("shard") in (None, str(shard and shard[0])):
        act(wish.get("act", ""), folder)
    right = shard[0] if shard else 3
    evaluate(spec, "result", right, shard)
    deliver({"before": None, "after": report(spec, right, shard)}, folder)


def merge(files, folder):
    """Add up what the shards say."""
    found = [json.loads(Path(file).read_text())["after"] for file in files]
    assert [each["part"]["index"] for each in found] == list(range(1, found[0]["part"]["count"] + 1))
    points = 4 * len(found)
    union = sum(each["union"]["count"] for each in found)
    merged = {**found[0], "part": None, "examples": points}
    merged["union"] = {"value": union / points, "count": union, "total": points, "low": 0.0, "high": 1.0}
    say("evaluated", subject="result", report=merged)
    deliver({"before": None, "after": merged}, folder)


def deliver(reports, folder):
    say("entered", phase="publishing")
    save(folder, "report", "report.json", json.dumps(reports).encode(), step=0)
    say("finished", reports=reports, seconds=0.1)


def train(spec, seconds, folder):
    """A file holds the step it is the state of; with the wish for states, every step gets one."""
    counts = {"linf": {"seen": 4, "robust": 2}, "l1": {"seen": 4, "robust": 1}}
    begin = max((int(path.read_text()) for path in folder.glob("state-*")), default=0)
    if begin:
        best = folder / "best.safetensors"
        if not best.exists():
            say("warned", code="no_best", message="its best weights are gone")
        else:
            assert int(best.read_text()) <= begin
        say("resumed", step=begin, epoch=begin / STEPS)
    say("entered", phase="training")
    WISHES["stepping"] = True
    for step in range(begin + 1, STEPS + 1):
        time.sleep(seconds)
        say("stepped", step=step, total_steps=STEPS, epoch=step / STEPS, loss=2.0 / step, learning_rate=0.05,
            norm="linf", counts=counts, seconds=float(step))  # fmt: skip
        if "states" in spec["metadata"] or WISHES["pause"] or WISHES["stop"]:
            save(folder, "best", "best.safetensors", str(step).encode(), step)
            save(folder, "state", f"state-{step}.safetensors", str(step).encode(), step)
        if spec["metadata"].get("cut") == str(step):
            act(spec["metadata"]["act"], folder)
        if WISHES["pause"]:
            say("paused", step=step, epoch=step / STEPS)
            sys.exit(75)
        if WISHES["stop"]:
            say("warned", code="stopped_early", message=f"stopped at step {step} of {STEPS}")
            break
    WISHES["stepping"] = False


def act(name, folder):
    once = folder.parent.parent / "acted-once"
    match name:
        case "crash":
            raise RuntimeError("the GPU fell off")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "killed for want of memory":
            counter = folder.parent.parent / "memory.events"
            counter.write_text(f"low 0\noom_kill {1 + int(counter.read_text().split()[-1])}\n")
            os.kill(os.getpid(), signal.SIGKILL)
        case "killed once" if not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop itself":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "pause once" if not once.exists():
            once.touch()
            say("paused", step=5, epoch=0.5)
            sys.exit(75)
        case "hang":
            time.sleep(600)
        case "hang deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        case "leave a child":
            os.fork() or time.sleep(600)
        case "leave a child in another group" if not os.fork():
            os.setsid()
            time.sleep(600)
        case "show environment":
            sys.stderr.writelines(f"{name}={value}\n" for name, value in os.environ.items())
        case "print":
            print("not JSON", flush=True)
        case "fail once" if not once.exists():
            once.touch()
            act("fail", folder)
        case "fail":
            say("failed", code="bad_weights", message="no weights in it", hint="send weights", field="base_model")
            sys.exit(2)


def handle_signals():
    """As `core.signals` does."""

    def pause(*_):
        WISHES["pause"] = True
        if not WISHES["stepping"]:
            sys.exit(75)

    signal.signal(signal.SIGTERM, pause)
    signal.signal(signal.SIGUSR1, lambda *_: WISHES.update(stop=True))


def die_with_the_supervisor():
    while os.read(0, 1024):
        pass
    os._exit(1)


def weights(spec, options):
    if "--weights-to-deliver" in options:
        return Path(options[options.index("--weights-to-deliver") + 1]).read_bytes()
    return b"weights of " + spec["name"].encode() + b"." * 2000


def main():
    kind, spec_file, *options = sys.argv[1:]
    assert "--json" in options
    assert "--until-stdin-closes" in options
    handle_signals()
    threading.Thread(target=die_with_the_supervisor, daemon=True).start()
    folder = Path(options[options.index("--output") + 1])
    if kind == "merge":
        merge([spec_file, *options[: options.index("--json")]], folder)
        return
    spec = json.loads(Path(spec_file).read_text())
    assert spec["kind"] == kind
    assert "webhook" not in spec
    assert not [name for name in os.environ if name.startswith("TEMPER_")]
    wish = spec["metadata"]
    say("started", spec=spec, device="cpu", architecture="none", parameters=0, train_examples=4, extra_examples=0,
        test_examples=4, total_steps=STEPS, precision=None, base_sha256=None, data_sha256="0" * 64, versions={},
        commit=None)  # fmt: skip
    say("entered", phase="preparing")
    for _ in range(int(wish.get("times", "1"))):
        sys.stderr.write(wish.get("say", "").replace("|", "\n"))
    sys.stderr.flush()
    if kind == "evaluate":
        shard = (
            [int(each) for each in options[options.index("--shard") + 1].split("/")] if "--shard" in options else None
        )
        evaluate_only(spec, folder, shard)
        return
    evaluate(spec, "base", 1)
    train(spec, float(wish.get("seconds", "0")), folder)
    if "verdicts" in wish:
        known = find_verdicts(folder)
        save(folder, "verdicts", f"verdicts-{known + 1}.safetensors", str(known + 1).encode(), known + 1)
    if "cut" not in wish:
        act(wish.get("act", ""), folder)
    evaluate(spec, "result", 3)
    say("entered", phase="publishing")
    reports = {"before": report(spec, 1), "after": report(spec, 3)}
    save(folder, "checkpoint", "checkpoint.safetensors", weights(spec, options))
    save(folder, "report", "report.json", json.dumps(reports).encode())
    say("finished", reports=reports, seconds=0.1)


main()
