// SQS on loopback: `node sqs_server.mjs [port]`; says its port on the first line, and ends with its standard input.
import { startFauxqs } from 'fauxqs'

const server = await startFauxqs({ port: Number(process.argv[2] ?? 0), host: '127.0.0.1', logger: false })
console.log(server.port)
process.stdin.resume()
process.stdin.on('end', () => process.exit(0))
