"""Triton Inference Server, python backend: the binary that `nvidia-pytriton` brings, without PyTriton's proxy.

    python triton_server.py FOLDER HTTP_PORT GRPC_PORT [onnxruntime|jax]

Every `FOLDER/*.onnx` is a model with dynamic batching, at most 64 rows and a delay of 1 ms. Becomes `tritonserver`.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import forward

HERE = Path(__file__).resolve().parent
PACKAGES = Path(sysconfig.get_path("purelib"))
SERVER = PACKAGES / "pytriton" / "tritonserver"
DELAY_US, MAX_ROWS = 1000, 64

CONFIGURATION = """
backend: "python"
max_batch_size: {rows}
input [{{ name: "image" data_type: TYPE_FP32 dims: [{shape}] }}]
output [{{ name: "softmax" data_type: TYPE_FP32 dims: [10] }}]
instance_group [{{ kind: KIND_CPU count: 1 }}]
dynamic_batching {{ max_queue_delay_microseconds: {delay_us} }}
parameters: {{ key: "file" value: {{ string_value: "{file}" }} }}
parameters: {{ key: "runtime" value: {{ string_value: "{runtime}" }} }}
"""


def lay_out(folder: Path, runtime: str) -> Path:
    """The backend with the stub for this Python, and the model repository, in a folder that is returned."""
    made = folder / f"triton-{runtime}"
    shutil.rmtree(made, ignore_errors=True)
    backend = made / "backends" / "python"
    shutil.copytree(SERVER / "backends" / "python", backend)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(SERVER / "python_backend_stubs" / version / "triton_python_backend_stub", backend)
    for file in sorted(folder.glob("*.onnx")):
        version_folder = made / "models" / file.stem / "1"
        version_folder.mkdir(parents=True)
        shutil.copy(HERE / "triton_model.py", version_folder)
        shutil.copy(HERE / "forward.py", version_folder)
        # The stub's Python knows nothing of this environment, nor does it read PYTHONPATH.
        text = f"import sys\nsys.path.insert(0, {str(PACKAGES)!r})\nfrom triton_model import TritonPythonModel\n"
        (version_folder / "model.py").write_text(text)
        shape = ", ".join(map(str, forward.shape(file.stem)))
        text = CONFIGURATION.format(shape=shape, rows=MAX_ROWS, delay_us=DELAY_US, file=file, runtime=runtime)
        (version_folder.parent / "config.pbtxt").write_text(text)
    return made


def main() -> None:
    """Lay out and become the server."""
    folder, http_port, grpc_port, *rest = sys.argv[1:]
    made = lay_out(Path(folder).resolve(), rest[0] if rest else "onnxruntime")
    libraries = [str(PACKAGES / "nvidia_pytriton.libs"), os.environ.get("LD_LIBRARY_PATH", "")]
    environment = os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries))}
    program = SERVER / "bin" / "tritonserver"
    command = [str(program), f"--model-repository={made / 'models'}", f"--backend-directory={made / 'backends'}"]
    command += [f"--http-port={http_port}", f"--grpc-port={grpc_port}", "--allow-metrics=false", "--log-info=false"]
    command += ["--http-address=127.0.0.1", "--grpc-address=127.0.0.1"]
    os.execve(program, command, environment)


if __name__ == "__main__":
    main()
