"""Bounds of faults, links and records: everything that can grow or wait has one here."""

# A control request is answered on loopback at once; a proxy that takes longer hangs.
CONTROL_TIMEOUT_S = 10.0
# What a proxy holds of a connection whose receiver is slow or delayed; more makes the sender wait, as a real link does.
PROXY_CHUNK_BYTES_MAX = 64 * 1024
PROXY_CHUNKS_HELD_MAX = 256
# On a narrow link bytes pass in pieces of this time, so that it flows and does not jump.
PROXY_MOMENT_S = 0.02
# A proxied cluster of five peers and four gateways has some forty links.
PROXY_LINKS_MAX = 256
PROXY_CONNECTIONS_PER_LINK_MAX = 1024
PROXY_CONNECT_TIMEOUT_S = 10.0
# Longer delays than this are cuts.
LATENCY_MS_MAX = 60_000
# `flap` ends by itself after this many cuts if its caller forgot it.
FLAP_CUTS_MAX = 10_000

# One event is a JSON line of a few hundred bytes; a run of the story has a few thousand.
HISTORY_EVENTS_MAX = 5_000_000
HISTORY_LINE_BYTES_MAX = 1024 * 1024
# The counts are exact; what is shown of a catastrophe fits on a screen.
PROBLEMS_SHOWN_MAX = 20
# Orders that the checker keeps apart for one image at a time. Twelve clients whose writes tell no version make 2^12; a
# hundred times as many take seconds and 100 MB.
CONFIGURATIONS_MAX = 400_000
# So many operations end before those of unknown outcome are looked through for what can be forgotten: often enough to
# keep them few, seldom enough to cost little.
UNKNOWN_REVIEW_EVERY = 16
# How many operations before a violation are looked through for the last one at which its answer was possible.
WINDOW_MAX = 64
# Of the states that were possible before it: more don't help to understand it.
STATES_SHOWN_MAX = 3

# A gateway that is cut off answers from its own disk; the bound is for a machine that is busy with the cluster.
CUT_OFF_ANSWER_MAX_S = 5.0
# Refusals that tell a client of its own doing, by HTTP status: the gateway that gave them is well.
ANSWERS_OF_HEALTH = (400, 403, 404, 409, 410, 413)
# A gateway or peer that was started again listens within that time on a busy machine.
START_MAX_S = 20.0
# Staleness is told in milliseconds, and rounded.
CLAIM_ROUNDING_S = 0.001

# The page of a report is read by people and stays below a few megabytes, however long the run was.
REPORT_BUCKETS_MAX = 240
REPORT_BUCKET_MIN_S = 0.1
REPORT_CLIENTS_MAX = 40
REPORT_FAULTS_MAX = 200
REPORT_BREACHES_MAX = 5
REPORT_VALUE_CHARACTERS_MAX = 400

# A recorded LMDB file of a test is tens of megabytes; the rebuilder holds it in memory.
RECORDED_FILE_BYTES_MAX = 1024 * 1024 * 1024
# LMDB writes no more than 64 pages at once.
RECORDED_WRITE_BYTES_MAX = 64 * 1024 * 1024
COMPILE_TIMEOUT_S = 120.0

# -- the suite
# A command of ours starts Python and asks a cluster that may be busy.
COMMAND_TIMEOUT_S = 60.0
# Every peer reads all its rows again at a pace that leaves room for clients: a minute for what half an hour leaves.
SCRUB_MAX_S = 300.0
# A fault lasts longer than an election timeout and than a zone takes to see that it is cut off, so that both happen.
FAULT_MIN_S, FAULT_MAX_S = 1.5, 5.0
# Between two faults clients get some ordinary answers.
CALM_MIN_S, CALM_MAX_S = 1.0, 3.0
# Below, at and above an election timeout (0.3 to 0.6 s), each way.
FAULT_LATENCIES_MS = (20, 150, 500)
# Less than a leader sends under load, and hardly enough for heartbeats.
FAULT_BANDWIDTHS_KIB_PER_S = (8, 64, 256)
# A busy disk, and one that makes every turn longer than an election timeout; far below what ends a process (10 s).
FAULT_SYNC_DELAYS_MS = (30, 150, 700)
# Within what certificates are valid for on either side, and beyond every timeout.
FAULT_CLOCK_OFFSETS_S = (-3600, -30, 30, 3600)
# A small disk holds the store of a run with room; its image file is as large as what was ever written there.
SMALL_DISK_BYTES = 1024 * 1024 * 1024
# Enough to try whether one can be mounted.
SMALL_DISK_BYTES_MIN = 8 * 1024 * 1024
# Half of what peers and gateways keep free (limits.disk_reserve_bytes), and nothing.
FULL_DISK_BYTES_LEFT = (128 * 1024 * 1024, 0)
# The bounds of a link's throughput.
BANDWIDTH_KIB_PER_S_MIN, BANDWIDTH_KIB_PER_S_MAX = 1, 1024 * 1024
# A cluster on a busy machine serves again long before; one that does not is reported as not having come back.
RECOVERY_MAX_S = 60.0
# The end of a run, after its time: the last fault heals, clients give up, queues drain, states are read and compared.
GRACE_S = 480.0
# Of it: draining what zones took while they were cut off. Writes of one image leave in separate batches.
DRAIN_MAX_S = 180.0
# One round of all faults takes three minutes on two quiet cores.
ROUND_MAX_S = 400.0
# Between two looks at a cluster, each of which asks every process.
LOOK_S = 0.1
# One request of a client; longer than an election, shorter than a fault may last.
REQUEST_MAX_S = 5.0
# The pace of a client: two cores carry the whole cluster, its proxy and all clients, and must not be what is tested.
CLIENT_PACE_S = 0.05
# Images that a set workload of one client makes at most, so that reading all of them at the end stays short.
IMAGES_PER_CLIENT_MAX = 20_000
# A consumer of the feed leaves after this and comes back: resuming is what is tested.
FEED_STRETCH_S = 1.0
# One operation of the history, and so one line, holds so many changes at most.
FEED_CHANGES_MAX = 2_000
# Images with data that one client makes at most: the end of a run reads all of them in the other zone.
IMAGES_WITH_DATA_MAX = 400
# Blocks of image numbers so small that every zone gets through several of them in a run.
ID_BLOCK, ID_RUNWAY_H = 100, 0.02
# Peers keep so little log that one which was away gets a snapshot.
LOG_KEEP_ENTRIES = 200
# A peer whose disk is full forgets old changes; the judge reads all of them in the end, so here it keeps them.
CHANGES_KEEP_FULL_ROWS = 1_000_000
