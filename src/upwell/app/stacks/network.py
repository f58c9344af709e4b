"""A network of its own in two zones: what is reached from outside in public subnets, all else in private ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from upwell.app.stacks.cloudformation import Json, Template, att, ref, sub

ZONES: Final = ("A", "B")
PRIVATE: Final = [ref(f"Private{zone}") for zone in ZONES]
PUBLIC: Final = [ref(f"Public{zone}") for zone in ZONES]
POSTGRES_PORT: Final = 5432
HTTPS_PORT: Final = 443


def add_network(t: Template, *, public: bool, internet: bool, services: Sequence[str]) -> None:
    """`public`: there are public subnets, for a load balancer; `internet`: what is in the private ones can call out;
    `services`: those of AWS that they call. S3 and DynamoDB cost nothing, the others about 15 dollars a month each.
    """
    t.parameter("VpcCidr", "The network's address range; any that is free where you want to peer it.", "10.86.0.0/16")
    vpc = {"CidrBlock": ref("VpcCidr"), "EnableDnsSupport": True, "EnableDnsHostnames": True}
    t.add("Vpc", "EC2::VPC", vpc)
    for number, zone in enumerate(ZONES):
        _subnet(t, f"Private{zone}", number)
        t.add(f"Private{zone}Routes", "EC2::RouteTable", {"VpcId": ref("Vpc")})
        _associate(t, f"Private{zone}", f"Private{zone}Routes")
    if public:
        _add_public(t)
        if internet:
            for zone in ZONES:
                _add_way_out(t, zone)
    _add_endpoints(t, services)


def security_group(
    t: Template,
    name: str,
    description: str,
    *,
    into: Sequence[tuple[int, Any]] = (),
    out: Sequence[tuple[int, Any]] = (),
) -> Json:
    """Who may come in, and where to: ports with an address range, or inwards also another group."""
    nowhere = [{"IpProtocol": "icmp", "FromPort": 252, "ToPort": 86, "CidrIp": "127.0.0.1/32"}]  # or all would be open
    t.add(
        name,
        "EC2::SecurityGroup",
        {
            "GroupDescription": description,
            "VpcId": ref("Vpc"),
            "SecurityGroupIngress": [_opening(port, whom) for port, whom in into],
            "SecurityGroupEgress": [_opening(port, whom) for port, whom in out] or nowhere,
        },
    )
    return att(name, "GroupId")


def _opening(port: int, whom: Any) -> Json:
    where = "SourceSecurityGroupId" if "Fn::GetAtt" in whom else "CidrIp"
    return {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, where: whom}


def _subnet(t: Template, name: str, number: int) -> None:
    t.add(
        name,
        "EC2::Subnet",
        {
            "VpcId": ref("Vpc"),
            "AvailabilityZone": {"Fn::Select": [number % len(ZONES), {"Fn::GetAZs": ""}]},
            "CidrBlock": {"Fn::Select": [number, {"Fn::Cidr": [ref("VpcCidr"), 2 * len(ZONES), 8]}]},
        },
    )


def _associate(t: Template, subnet: str, routes: str) -> None:
    content = {"SubnetId": ref(subnet), "RouteTableId": ref(routes)}
    t.add(f"{subnet}Association", "EC2::SubnetRouteTableAssociation", content)


def _add_public(t: Template) -> None:
    t.add("Internet", "EC2::InternetGateway")
    t.add(
        "InternetAttachment", "EC2::VPCGatewayAttachment", {"VpcId": ref("Vpc"), "InternetGatewayId": ref("Internet")}
    )
    t.add("PublicRoutes", "EC2::RouteTable", {"VpcId": ref("Vpc")})
    route = {"RouteTableId": ref("PublicRoutes"), "DestinationCidrBlock": "0.0.0.0/0", "GatewayId": ref("Internet")}
    t.add("PublicRoute", "EC2::Route", route, after="InternetAttachment")
    for number, zone in enumerate(ZONES):
        _subnet(t, f"Public{zone}", len(ZONES) + number)
        _associate(t, f"Public{zone}", "PublicRoutes")


def _add_way_out(t: Template, zone: str) -> None:
    """One for each zone: the loss of a zone takes only its own."""
    t.add(f"Nat{zone}Address", "EC2::EIP", {"Domain": "vpc"}, after="InternetAttachment")
    nat = {"AllocationId": att(f"Nat{zone}Address", "AllocationId"), "SubnetId": ref(f"Public{zone}")}
    t.add(f"Nat{zone}", "EC2::NatGateway", nat)
    route = {
        "RouteTableId": ref(f"Private{zone}Routes"),
        "DestinationCidrBlock": "0.0.0.0/0",
        "NatGatewayId": ref(f"Nat{zone}"),
    }
    t.add(f"Private{zone}Route", "EC2::Route", route)


def _add_endpoints(t: Template, services: Sequence[str]) -> None:
    gateways = [service for service in ("s3", "dynamodb") if service in services]
    for service in gateways:
        t.add(
            f"Endpoint{service.title()}",
            "EC2::VPCEndpoint",
            {
                "VpcId": ref("Vpc"),
                "ServiceName": _service(service),
                "VpcEndpointType": "Gateway",
                "RouteTableIds": [ref(f"Private{zone}Routes") for zone in ZONES],
            },
        )
    others = [service for service in services if service not in gateways]
    if others:
        group = security_group(
            t, "EndpointGroup", "Services of AWS, from inside the network", into=[(HTTPS_PORT, ref("VpcCidr"))]
        )
    for service in others:
        t.add(
            f"Endpoint{service.title()}",
            "EC2::VPCEndpoint",
            {
                "VpcId": ref("Vpc"),
                "ServiceName": _service(service),
                "VpcEndpointType": "Interface",
                "PrivateDnsEnabled": True,
                "SubnetIds": PRIVATE,
                "SecurityGroupIds": [group],
            },
        )


def _service(name: str) -> Json:
    return sub(f"com.amazonaws.${{AWS::Region}}.{name}")
