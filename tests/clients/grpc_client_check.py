"""Checks a running server with a gRPC client generated from proto/ at run time, with reflection and health.

Usage: grpc_client_check.py ADDRESS        e.g. 127.0.0.1:8001
Prints one line per check; exits 1 at the first that fails. Needs grpcio-tools, grpcio-health-checking, grpcio-reflection.
"""

import pathlib
import sys
import tempfile

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[2]


def generate_stubs(folder):
    for name in ("inference", "training", "cluster"):
        arguments = ["protoc", f"--proto_path={ROOT}", f"--python_out={folder}", f"--grpc_python_out={folder}",
                     f"proto/{name}.proto"]
        assert protoc.main(arguments) == 0, f"proto/{name}.proto does not compile"
    sys.path.insert(0, folder)


def expect(code, part, function):
    try:
        function()
    except grpc.RpcError as error:
        assert error.code() == code, error
        assert part in error.details(), error.details()
        return
    raise AssertionError(f"expected {code}")


def check_health(channel):
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "plumbline.v1.Inference"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, service
    watch = health.Watch(health_pb2.HealthCheckRequest(service="plumbline.v1.Inference"), timeout=10)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    expect(grpc.StatusCode.NOT_FOUND, "",
           lambda: health.Check(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=10))


def check_reflection(channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    services = set(database.get_services())
    assert {"plumbline.v1.Inference", "plumbline.v1.Training", "plumbline.v1.Cluster",
            "grpc.health.v1.Health"} <= services, services
    file = database.FindFileContainingSymbol("plumbline.v1.Inference")
    assert "Generate" in [method.name for method in file.service[0].method]


def check_generate(channel):
    from proto import inference_pb2 as pb
    from proto import inference_pb2_grpc

    stub = inference_pb2_grpc.InferenceStub(channel)
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="Say something.")])
    request = pb.GenerateRequest(chat=chat, max_tokens=12, n=2, logprobs=2, ignore_eos=True,
                                 sampling=pb.Sampling(temperature=1.5, seed=7))
    runs = []
    for _ in range(2):
        tokens, reasons, usage = {0: [], 1: []}, {}, None
        for part in stub.Generate(request, timeout=120):
            assert len(part.logprobs) == len(part.token_ids)
            tokens[part.choice] += part.token_ids
            if part.finish_reason:
                reasons[part.choice] = part.finish_reason
            if part.HasField("usage"):
                usage = part.usage
        assert reasons == {0: "length", 1: "length"} and usage.completion_tokens == 24
        assert [len(ids) for ids in tokens.values()] == [12, 12]
        runs.append(tokens)
    assert runs[0] == runs[1], "a seed repeats its answer"

    stream = stub.Generate(pb.GenerateRequest(text="Hello", ignore_eos=True), timeout=120)
    next(stream)
    stream.cancel()
    expect(grpc.StatusCode.INVALID_ARGUMENT, "temperature",
           lambda: list(stub.Generate(pb.GenerateRequest(text="x", sampling=pb.Sampling(temperature=-1)), timeout=10)))
    expect(grpc.StatusCode.INVALID_ARGUMENT, "prompt", lambda: list(stub.Generate(pb.GenerateRequest(), timeout=10)))
    expect(grpc.StatusCode.NOT_FOUND, "no-such-model",
           lambda: list(stub.Generate(pb.GenerateRequest(text="x", model="no-such-model"), timeout=10)))
    expect(grpc.StatusCode.DEADLINE_EXCEEDED, "",
           lambda: list(stub.Generate(pb.GenerateRequest(text="Hello", ignore_eos=True), timeout=0.02)))


def check_tokens_and_scores(channel):
    from proto import inference_pb2 as pb
    from proto import inference_pb2_grpc

    stub = inference_pb2_grpc.InferenceStub(channel)
    text = "The quick brown fox."
    ids = stub.Tokenize(pb.TokenizeRequest(text=text), timeout=10).ids
    assert text in stub.Detokenize(pb.DetokenizeRequest(ids=ids), timeout=10).text
    score = stub.Score(pb.ScoreRequest(text=text, top_logprobs=1), timeout=60)
    again = stub.Score(pb.ScoreRequest(tokens=pb.TokenIds(ids=ids), top_logprobs=1), timeout=60)
    assert score == again and list(score.token_ids) == list(ids) and len(score.tokens) == len(ids) - 1
    for info in score.tokens:
        assert info.logprob <= info.top_logprobs[0] <= 0
        assert (info.rank == 1) == (info.top_ids[0] == info.id)
    assert stub.Models(pb.ModelsRequest(), timeout=10).models[0].max_model_len > 0


def check_cluster_and_training(channel):
    from proto import cluster_pb2, cluster_pb2_grpc, training_pb2, training_pb2_grpc

    status = cluster_pb2_grpc.ClusterStub(channel).Status(cluster_pb2.StatusRequest(), timeout=10)
    assert status.ready and not status.draining
    assert len(status.ranks) in (0, status.tp * status.pp)
    training = training_pb2_grpc.TrainingStub(channel)
    expect(grpc.StatusCode.UNIMPLEMENTED, "fine-tune",
           lambda: training.ListJobs(training_pb2.ListJobsRequest(), timeout=10))


CHECKS = [check_health, check_reflection, check_generate, check_tokens_and_scores, check_cluster_and_training]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder, grpc.insecure_channel(sys.argv[1]) as channel:
        generate_stubs(folder)
        for check in CHECKS:
            check(channel)
            print(f"ok {check.__name__}", flush=True)


if __name__ == "__main__":
    main()
