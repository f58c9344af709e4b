// Kinesalite on the loopback interface only: its own command listens on every interface.
// Arguments: port, and optionally a folder that keeps the streams over a restart.

const kinesalite = require('kinesalite')

const [port, path] = process.argv.slice(2)
const server = kinesalite({ path, createStreamMs: 5, updateStreamMs: 5, deleteStreamMs: 5, shardLimit: 500 })

// Node's 5 s would end a connection at the very moment a client reuses it; AWS keeps idle ones longer.
server.keepAliveTimeout = 120_000
server.listen(Number(port), '127.0.0.1')
