"""Plays `sglang.bench_serving`: its options, one request, one result line."""

import argparse
import json
import time
import urllib.request


def main(argv=None, vllm=False):
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", default="sglang")
    parser.add_argument("--base-url")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--model")
    parser.add_argument("--num-prompts", type=int, default=1000)
    parser.add_argument("--max-concurrency", type=int)
    parser.add_argument("--output-file")
    parser.add_argument("--save-result", action="store_true")
    parser.add_argument("--result-dir", default=".")
    parser.add_argument("--result-filename")
    args, _ = parser.parse_known_args(argv)
    url = args.base_url or f"http://{args.host}:{args.port}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(f"{url.replace('0.0.0.0', '127.0.0.1')}/health", timeout=10).read()
    time.sleep(0.1)
    line = json.dumps({"num_prompts": args.num_prompts, "max_concurrency": args.max_concurrency, "output_throughput": 1.0})
    if args.output_file:
        with open(args.output_file, "a") as results:
            results.write(line + "\n")
    if args.save_result and args.result_filename:
        with open(f"{args.result_dir}/{args.result_filename}", "w") as results:
            results.write(line)


if __name__ == "__main__":
    main()
