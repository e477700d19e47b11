"""What an attacker who has taken over a container may do: as little as possible."""


def test_compose_publishes_on_this_machine_only(serving_files):
    for service in serving_files.compose["services"].values():
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:"), port


def test_compose_drops_privileges(serving_files):
    services = serving_files.compose["services"]
    for name, service in services.items():
        user, group = service["user"].split(":")
        assert int(user) > 0, name
        assert group.isdecimal()
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "network_mode", "pid", "ipc", "devices"} & set(service), name
        assert float(service["cpus"]) > 0
        assert service["mem_limit"]
        assert service["pids_limit"] > 0
        # Compose copies inline configs into the root, which must be writable then.
        assert service.get("read_only", False) == ("configs" not in service), name
    assert services["tensorflow-serving"]["read_only"]
    assert all("noexec" in mount for mount in services["tensorflow-serving"]["tmpfs"])


def test_kubernetes_drops_privileges(serving_files):
    pod, container = serving_files.pod, serving_files.container
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0 < pod["securityContext"]["runAsGroup"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(container["resources"]["limits"]) == {"cpu", "memory"}
    assert container["resources"]["limits"]["cpu"] == container["resources"]["requests"]["cpu"]
    writable = [m["name"] for m in container["volumeMounts"] if not m.get("readOnly")]
    assert writable == ["tmp"]
    (tmp,) = [v for v in pod["volumes"] if v["name"] == "tmp"]
    assert tmp["emptyDir"]["sizeLimit"]
    assert not any("hostPath" in volume for volume in pod["volumes"])


def test_the_network_policy_admits_clients_and_prometheus(serving_files):
    policy = serving_files.kubernetes("NetworkPolicy")["spec"]
    labels = serving_files.kubernetes("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"] == labels
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    assert policy["egress"] == []
    ports = {port["name"] for port in serving_files.container["ports"]}
    for rule in policy["ingress"]:
        assert {port["port"] for port in rule["ports"]} <= ports
        for source in rule["from"]:  # none is open to a whole namespace, or to all of them
            assert source["podSelector"]["matchLabels"]
            assert source.get("namespaceSelector", {"matchLabels": labels})["matchLabels"]
    clients, prometheus = policy["ingress"]
    assert [port["port"] for port in prometheus["ports"]] == ["rest"]
    (scraper,) = prometheus["from"]
    assert set(scraper["namespaceSelector"]["matchLabels"]) == {"kubernetes.io/metadata.name"}
    assert len(clients["from"]) == 2
