// What an agent puts into the environment of its slice's processes, beside a TMPDIR of their own;
// some of it stands in the agent's already (launch/launcher.h).
#pragma once

namespace maniple {

constexpr char kAgentVariable[] = "MANIPLE_AGENT";       // control address of the agent
constexpr char kTokenVariable[] = "MANIPLE_TOKEN_FILE";  // mode 0600
constexpr char kSliceVariable[] = "MANIPLE_SLICE";
constexpr char kLifeVariable[] = "MANIPLE_LIFE";
constexpr char kBurnInVariable[] = "MANIPLE_BURN_IN";    // 1: the slice was quarantined
constexpr char kHostVariable[] = "MANIPLE_HOST";         // failure domain: the host's name
constexpr char kAddressVariable[] = "MANIPLE_ADDRESS";   // numeric, for the ports of the ranks
constexpr char kLeaseVariable[] = "MANIPLE_LEASE_US";

}  // namespace maniple
