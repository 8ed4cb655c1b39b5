"""Tests on several logical CPU devices, each in a child of one warm process.

TensorFlow fixes its devices at the first operation, so such a test needs a process of
its own. A server that has imported everything, and run nothing, forks it.
"""

import functools
import importlib.util
import inspect
import multiprocessing
import sys
import traceback

_SECONDS = 600  # a collective that waits for nobody would wait for ever
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["keras", "tensorflow", "tf_dlrm"])


def on_devices(num_devices: int):
    """Decorator of a test that runs where TensorFlow has `num_devices` CPU devices.

    Where the number is a parameter, the test calls `on_devices(number)(function)(...)`
    with a function of its module. Arguments go to the child: they must be picklable.
    """

    def decorate(test):
        @functools.wraps(test)
        def run_in_child(*arguments, **options):
            receiver, sender = _context.Pipe(duplex=False)
            place = (inspect.getfile(test), test.__name__, sys.path)
            child = _context.Process(
                target=_run, args=(sender, num_devices, place, arguments, options)
            )
            child.start()
            sender.close()
            try:
                report = receiver.recv() if receiver.poll(_SECONDS) else "timed out"
            except EOFError:
                child.join()
                report = f"The child ended with {child.exitcode} and said nothing."
            finally:
                child.kill()
                child.join()
            assert report is None, report

        return run_in_child

    return decorate


def _run(sender, num_devices, place, arguments, options):
    path, name, sys.path[:] = place
    try:
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * num_devices
        )
        spec = importlib.util.spec_from_file_location("test_in_child", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        test = getattr(module, name)
        getattr(test, "__wrapped__", test)(*arguments, **options)
        sender.send(None)
    except BaseException:
        sender.send(traceback.format_exc())
