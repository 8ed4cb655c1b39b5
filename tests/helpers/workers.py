"""Tests on several worker processes over loopback, which `TF_CONFIG` names.

Importing TensorFlow takes seconds, so that one group of processes runs many cases. A
process whose collective operation failed is poisoned: the group ends with it.
"""

import importlib.util
import inspect
import json
import multiprocessing
import os
import socket
import sys
import traceback

SECONDS = 300  # for one case; a collective that waits for nobody would wait for ever
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["keras", "tensorflow", "tf_dlrm"])


def free_ports(number):
    """Return ports on 127.0.0.1 that nobody listens on."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def tf_config(ports, index):
    """Return the value of `TF_CONFIG` for one of several workers on this machine."""
    workers = [f"127.0.0.1:{port}" for port in ports]
    task = {"type": "worker", "index": index}
    return json.dumps({"cluster": {"worker": workers}, "task": task})


class Group:
    """Worker processes that call functions of test modules, all at the same time.

    Args:
        num_workers: Number of processes.
        num_devices: Number of logical CPU devices of each process.
    """

    def __init__(self, num_workers=2, num_devices=1):
        self._size = num_workers, num_devices
        self._pipes, self.processes = [], []

    def _start(self):
        num_workers, num_devices = self._size
        ports = free_ports(num_workers)
        for index in range(num_workers):
            pipe, end = _context.Pipe()
            process = _context.Process(
                target=_serve,
                args=(end, tf_config(ports, index), num_devices, sys.path),
            )
            process.start()
            end.close()
            self._pipes.append(pipe)
            self.processes.append(process)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        self._pipes, self.processes = [], []  # the next case starts others

    def run(self, function, *arguments, **options):
        """Call a module's function in each worker; return the results of all.

        The function gets the worker's `MultiWorkerMirroredStrategy` first. A result
        must be picklable.
        """
        if not self.processes:
            self._start()
        place = inspect.getfile(function), function.__name__
        for pipe in self._pipes:
            pipe.send((place, arguments, options))
        results, reports = [], []
        for index, pipe in enumerate(self._pipes):
            try:
                is_there = pipe.poll(5 if reports else SECONDS)
                result, report = pipe.recv() if is_there else (None, "timed out")
            except (EOFError, ConnectionError):
                result, report = None, "the process ended"
            results.append(result)
            if report is not None:
                reports.append(f"worker {index}: {report}")
        if reports:
            self.__exit__()
        assert not reports, "\n".join(reports)
        return results


def _serve(pipe, config, num_devices, path):
    sys.path[:] = path
    os.environ["TF_CONFIG"] = config
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * num_devices
    )
    strategy, modules = tf.distribute.MultiWorkerMirroredStrategy(), {}
    while True:
        try:
            (file, name), arguments, options = pipe.recv()
        except EOFError:
            return
        try:
            if file not in modules:
                spec = importlib.util.spec_from_file_location("test_in_worker", file)
                modules[file] = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(modules[file])
            function = getattr(modules[file], name)
            pipe.send((function(strategy, *arguments, **options), None))
        except BaseException:
            pipe.send((None, traceback.format_exc()))
