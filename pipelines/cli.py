"""The command `tf-dlrm`: finds the command, reads its options, reports errors.

An error of the user (`UserError`: an option, a file, its content) or of the system
(`OSError`) is one line on standard error and exit code 2; TF_DLRM_TRACEBACK=1 shows
its traceback. Every other exception is a bug and always shows its traceback.
"""

# Import as little as possible here: Ctrl-C before `entry` runs shows a traceback.
import os
import re
import signal
import sys

_WITHOUT_TENSORFLOW = (
    "benchmark",
    "generate",
    "prepare",
    "profile-trace",
    "report",
    "runs",
    "schema",
)
EPILOG = "tf-dlrm COMMAND --help shows the options of a command."
_INTERRUPTED, _TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
_PROCESS = os.getpid()
_interrupted, _screen = False, 2  # Ctrl-C was pressed; descriptor of standard error
_LONGEST_MESSAGE = 2000
_scratch = None  # folder for temporary files


def main(arguments=None) -> int:
    """Run `tf-dlrm` and return its exit code.

    Args:
        arguments: The words after `tf-dlrm`, a sequence of strings; default: those of
            this process.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    from pipelines.commands import COMMANDS, GROUPS
    from pipelines.runtime import UserError

    if not arguments or arguments[0] in ("-h", "--help"):
        _print_help(COMMANDS, GROUPS)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        import importlib.metadata

        print(f"tf-dlrm {importlib.metadata.version('tf-dlrm')}")
        return 0
    name, *options = arguments
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        return _fail(name, f"there is no command '{name}'. Commands: {known}")
    try:
        command = _parse(name, COMMANDS[name], options)
        if name not in _WITHOUT_TENSORFLOW or getattr(command, "needs_tensorflow", 0):
            _import_tensorflow()
        if getattr(command, "dry_run", False):
            print("Dry run: nothing is written. The command would:")
            for line in command.plan():
                print(f"- {line}")
            return 0
        _run(command)
    except SystemExit as stopped:  # stopped by a signal, which was reported
        if not stopped.code:
            raise
        return stopped.code
    except KeyboardInterrupt:
        return _fail(name, "interrupted", code=_INTERRUPTED)
    except Exception as error:
        if _interrupted:  # a library turned the interrupt into another error
            return _fail(name, "interrupted", code=_INTERRUPTED)
        is_mistake = isinstance(error, UserError | OSError)
        if not is_mistake or os.environ.get("TF_DLRM_TRACEBACK"):
            raise
        from pipelines.commands.flags import translate

        return _fail(name, translate(_words(error), COMMANDS[name]))
    return 0


def _run(command):
    """Run a command; the error of a failed write names the output."""
    from pipelines.runtime import disk

    place = getattr(command, "out", None) or getattr(command, "output", None)
    if place is None:
        command.run()
        return
    tensorflow = sys.modules.get("tensorflow")
    also = () if tensorflow is None else (tensorflow.errors.OpError,)
    with disk.explaining("the output", place, also=also):
        command.run()


def _import_tensorflow():
    """Import TensorFlow, which takes seconds, and say so.

    Its start-up lines are shown only if the import fails. C++ code writes them before
    any setting is read, so they can be hidden only by redirecting the file descriptor
    of standard error.
    """
    import tempfile

    global _screen
    sys.stderr.flush()
    screen = os.dup(2)
    shown, erased = (b"Loading TensorFlow ...", b"\r\x1b[K")
    if not os.isatty(screen):  # a line in a log stays
        shown, erased = (shown + b"\n", b"")
    if "tensorflow" in sys.modules:
        shown = erased = b""
    os.write(screen, shown)
    with tempfile.TemporaryFile() as start_up_lines:
        os.dup2(start_up_lines.fileno(), 2)
        _screen = screen
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()
        except BaseException:
            start_up_lines.seek(0)
            os.write(screen, erased + start_up_lines.read())
            raise
        else:
            os.write(screen, erased)
        finally:
            _screen = 2
            os.dup2(screen, 2)
            os.close(screen)


def _parse(name, kind, options):
    import contextlib
    import io

    import tyro

    from pipelines.commands.starts import STARTS
    from pipelines.runtime import UserError

    if {"-h", "--help"} & set(options) and hasattr(kind, "common"):
        from pipelines.commands.flags import describe_common

        print(describe_common(name, kind))
        raise SystemExit(0)
    default = None
    if {"-h", "--help", "--help-all"} & set(options):
        from pipelines.commands.flags import tidy_help

        tidy_help(kind)
        options = ["--help"]
    elif name in STARTS:
        default = STARTS[name](kind, options)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(
                kind,
                prog=f"tf-dlrm {name}",
                args=options,
                default=default,
            )
    except SystemExit as error:
        if error.code:
            raise UserError(_one_line(box.getvalue())) from None
        raise


def _one_line(text: str) -> str:
    """Return the text of a box that tyro drew, as one line without the frame."""
    lines = []
    for line in text.splitlines():
        line = re.sub(r"[╭╮╰╯│─]+|-{10,}", " ", line).strip()
        if line.startswith("For full helptext"):
            break
        if line:
            lines.append(re.sub(r"\s+", " ", line))
    return " ".join(lines[1:])  # the first line is the title of the box


def entry() -> None:
    """Run the console script: exit with the code that `main` returns.

    After a failure it skips the interpreter's shutdown, in which threads of an
    interrupted input pipeline can deadlock. Temporary files are in one folder that is
    removed at the end, or at the next start if the process is killed.
    """
    code = 0
    try:
        signal.signal(signal.SIGINT, _interrupt)
        signal.signal(signal.SIGTERM, _terminate)  # training handles it itself
        sys.unraisablehook = _interrupt_again
        _make_scratch()
        try:
            code = main()
            sys.stdout.flush()
        except OSError as error:  # from standard output: a command reports all others
            if os.environ.get("TF_DLRM_TRACEBACK"):
                raise
            code = code or 2
            os.write(2, f"tf-dlrm: error: {_words(error)}\n".encode())
        except Exception:
            import traceback

            traceback.print_exc()
            print("tf-dlrm: this is a bug; please report it.", file=sys.stderr)
            sys.stderr.flush()
            code = 1
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            _remove_scratch()
    except KeyboardInterrupt:
        code = _INTERRUPTED
        _say("interrupted")
    if code:
        os._exit(code)
    sys.exit(0)


def _interrupt(number, frame):
    """Handle Ctrl-C.

    A module that is interrupted during its import may raise any error, so there the
    process ends at once; nothing is being written yet.
    """
    global _interrupted
    _interrupted = True
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _end("interrupted", _INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def _terminate(number, frame):
    """Handle SIGTERM: end at once, as without a handler, but say so and clean up."""
    if os.getpid() != _PROCESS:  # a forked child
        os._exit(_TERMINATED)
    _end("terminated", _TERMINATED)


def _end(word, code):
    _say(word)
    _remove_scratch()
    os._exit(code)


def _interrupt_again(unraisable):
    """Interrupt again after an interrupt that Python could only print.

    Python cannot raise it in a destructor, for example.
    """
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    import _thread
    import threading

    threading.Timer(0.01, _thread.interrupt_main).start()


def _say(word):
    words = [word for word in sys.argv[1:2] if word.replace("-", "").isalpha()]
    name = " ".join(["tf-dlrm", *words])
    os.write(_screen, f"{name}: error: {word}\n".encode())


def _make_scratch():
    """Make the folder for temporary files; if that fails, use the system's."""
    import tempfile

    from pipelines.runtime import disk

    global _scratch
    try:
        disk.remove_abandoned(tempfile.gettempdir())
        _scratch = tempfile.mkdtemp(prefix=disk.temporary_name("tf-dlrm"))
        tempfile.tempdir = _scratch
    except OSError:
        pass


def _remove_scratch():
    import shutil
    import tempfile

    if _scratch is not None:
        tempfile.tempdir = None
        shutil.rmtree(_scratch, ignore_errors=True)


def _words(error) -> str:
    if isinstance(error, OSError) and error.strerror:
        if error.filename:
            return f"{error.strerror}: {error.filename}"
        names_place = hasattr(error, "problem")  # as a WriteError does
        return error.strerror if names_place else f"standard output: {error.strerror}"
    return getattr(error, "one_line", "") or str(error)


def _fail(name, message, code=2):
    message = re.sub(r"\s*\n\s*", " ", message.strip())
    if len(message) > _LONGEST_MESSAGE:  # it quotes the content of a file
        message = f"{message[:_LONGEST_MESSAGE]}..."
    print(f"tf-dlrm {name}: error: {message}", file=sys.stderr)
    return code


def _print_help(commands, groups):
    print("usage: tf-dlrm COMMAND [options]\n\nDLRM for TensorFlow and Keras 3.")
    for title, names in groups.items():
        print(f"\n{title}:")
        for name in names:
            print(f"  {name:<15}{commands.summary(name)}")
    print(f"\n{EPILOG}")


if __name__ == "__main__":
    entry()
