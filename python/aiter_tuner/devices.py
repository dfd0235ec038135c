"""Reports the devices that aiter's tuner would use: run as `python devices.py`, in the environment the tuner will get.

Imports torch and aiter, because the tuner counts devices and compute units after it has imported them. Prints one line,
a tag and a JSON object, so that the output of those imports does not matter. Python 3.8 on.
"""

import json
import os
import sys

TAG = "gemmtune-aiter: "


def main():
    """Prints the answer; if something is missing, with the error."""
    answer = {"executable": sys.executable, "versions": {}}
    try:
        import torch

        answer["versions"]["torch"] = str(getattr(torch, "__version__", ""))
        hip = getattr(getattr(torch, "version", None), "hip", None)
        if hip:
            answer["versions"]["hip"] = str(hip)
        import aiter

        answer["package"] = os.path.realpath(os.path.dirname(aiter.__file__))
        answer["count"] = int(torch.cuda.device_count())
        if answer["count"]:
            properties = torch.cuda.get_device_properties(torch.cuda.current_device())
            answer["cu_num"] = int(properties.multi_processor_count)
            # `gfx942:sramecc+:xnack-`
            answer["gfx"] = str(getattr(properties, "gcnArchName", "")).split(":")[0]
            answer["name"] = str(getattr(properties, "name", ""))
    except BaseException as error:  # an import may even exit
        answer["error"] = f"{type(error).__name__}: {error}"
    print(TAG + json.dumps(answer), flush=True)


main()
