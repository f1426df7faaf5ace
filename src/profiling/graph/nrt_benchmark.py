"""Times a compiled graph on a NeuronCore through nrtpy, Neuron's runtime for Python, and prints one line of
JSON. Arguments: the NEFF, warm-up runs, timed runs. The contents of inputs do not matter: zeros."""
import json
import sys


def main(neff, warm_up, runs):
    try:
        import numpy
        import nrtpy
    except ImportError as e:
        print(json.dumps({"error": str(e)}))
        return
    try:
        nrtpy.configure(visible_cores=[0])
        model = nrtpy.NrtpyModel.load_from_neff(neff)
        inputs = {
            name: nrtpy.NrtpyTensor.from_numpy(numpy.zeros(int(info.size), dtype=numpy.uint8), name=name)
            for name, info in model.input_tensors_info.items()
        }
        result = model.benchmark(inputs=inputs, warmup_iter=warm_up, benchmark_iter=runs, mode="device")
        print(json.dumps({"ms": [float(ms) for ms in result.durations_ms]}))
    except Exception as e:  # whatever the runtime raises is the answer
        print(json.dumps({"error": f"{type(e).__name__}: {e}"}))


main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
