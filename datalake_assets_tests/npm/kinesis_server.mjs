// Kinesis on loopback: `node kinesis_server.mjs`; says its port on the first line, and ends with its standard input.
// Lines of that, each answered by one: `shift MS` puts the server's clock forward, or back; `fail OPERATION CODE COUNT`
// has the next requests for an operation refused.
import { createInterface } from 'node:readline'
import kinesalite from 'kinesalite'

const realNow = Date.now
let shift = 0
const failing = new Map()
Date.now = () => realNow() + shift

const server = kinesalite({ createStreamMs: 20, deleteStreamMs: 20, updateStreamMs: 20, shardLimit: 1000 })
const [handle] = server.listeners('request')
server.removeAllListeners('request')
server.on('request', (request, response) => {
  response.setHeader('Date', new Date(Date.now()).toUTCString())
  const operation = String(request.headers['x-amz-target']).split('.').pop()
  const failure = failing.get(operation)
  if (failure === undefined || failure.count === 0) return handle(request, response)
  failure.count -= 1
  response.statusCode = failure.code === 'InternalFailure' ? 500 : 400
  response.setHeader('Content-Type', 'application/x-amz-json-1.1')
  request.resume()
  request.on('end', () => response.end(JSON.stringify({ __type: failure.code, message: 'asked for' })))
})
// it throws what ends a request of a client that was killed amid it
process.on('uncaughtException', (error) => { if (error.code !== 'ECONNRESET') throw error })
server.listen(0, '127.0.0.1', () => console.log(server.address().port))
const lines = createInterface({ input: process.stdin })
lines.on('line', (line) => {
  const [word, first, code, count] = line.split(' ')
  if (word === 'shift') shift = Number(first)
  if (word === 'fail') failing.set(first, { code, count: Number(count) })
  console.log('done')
})
lines.on('close', () => process.exit(0))
