"""The command line of the library: python -m core train|finetune|evaluate|merge|import-weights|inspect-....

    python -m core finetune examples/digits.json --epochs 5 --eps.l1 2 --output runs/digits
    python -m core evaluate --base-model digits-cnn-linf --evaluation.protocol standard --output runs/base
    python -m core evaluate examples/digits-evaluate.json --shard 1/2 --output runs/1   (and 2/2, anywhere, any time)
    python -m core merge runs/1 runs/2 --output runs/whole
    python -m core import-weights carmon.pt --published Carmon2019Unlabeled --output models/carmon.safetensors
    python -m core finetune --model my_networks:Net --weights net.pt --dataset cifar10   (a class of your own)
    python -m core download cifar10   (a run downloads it otherwise; a run of the service reaches no server)
    python -m core inspect-dataset pets.zip --output runs/pets   (and inspect-model weights.pt: untrusted files)

The options are the fields of the spec, with their help; the spec file gives the others. Each event is a line on
stdout, as text or as JSON. Exit status: `core.schema.exit_status`. Of several processes the status is torchrun's: 0
done, else 1, also after a pause.

A training run that was interrupted resumes when the same command is run again. SIGTERM pauses it, SIGUSR1 makes it
stop and deliver the best weights so far. On several GPUs: torchrun --standalone --nproc-per-node 4 -m core finetune ...
"""

import os
import sys
import threading
import traceback
from contextlib import redirect_stdout

from core.cli.commands import run_command
from core.cli.console import event_lines
from core.cli.parser import parse_arguments
from core.schema.errors import UserError
from core.schema.events import Event, Failed, Paused
from core.schema.exit_status import ExitStatus
from core.signals import Interrupted, StopRequests, handle_signals


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = parse_arguments(arguments)
    # Of several processes only the first one reports events; errors in another one are for its log.
    reports = os.environ.get("RANK", "0") == "0"
    out = sys.stdout if reports else sys.stderr

    def show(event: Event | str) -> None:
        if isinstance(event, str):
            print(event, file=out, flush=True)
        elif options.json_lines:
            print(event.model_dump_json(), file=out, flush=True)
        else:
            for line in event_lines(event):
                print(line, file=out, flush=True)

    requests = StopRequests()
    if options.until_stdin_closes:
        threading.Thread(target=_exit_with_stdin, daemon=True).start()
    # Text that a library prints must not get between the events.
    with redirect_stdout(sys.stderr), handle_signals(requests):
        try:
            event = None
            for event in run_command(options, requests):
                if reports:
                    show(event)
        except UserError as error:
            names = ("code", "message", "hint", "field", "retryable")
            show(Failed(**{name: getattr(error, name) for name in names}))
            return error.exit_status
        except KeyboardInterrupt:
            return ExitStatus.INTERRUPTED
        except Interrupted:
            return ExitStatus.PAUSED
        except Exception as error:
            traceback.print_exc()
            message = f"{type(error).__name__}: {error}"
            show(Failed(code="internal_error", message=message, hint="please report this with the log"))
            return ExitStatus.FAILED
    return ExitStatus.PAUSED if isinstance(event, Paused) else ExitStatus.SUCCEEDED


def _exit_with_stdin() -> None:
    """End the process when stdin closes, which happens however the process at its other end ends."""
    # Not through sys.stdin: a thread that waits in its buffer makes Python abort at the end of a good run.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(143)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Without Python's own clean-up, which takes torch a second or two; and of several processes one would now and then
    # be aborted during it by a thread of torch's, after which torchrun ends the others.
    os._exit(status)
