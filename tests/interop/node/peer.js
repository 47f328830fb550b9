'use strict';
// A client over WebSocket, written from protocol/command.cddl and protocol/layouts.md alone.
//   node peer.js NAME_SERVER TOPIC TEXT ASKER
// Sends TEXT, pulls it back, waits for the broker's notice that this consumer joined its group; then connects to
// ASKER, a server that asks its clients, and answers. Prints what happened as one JSON line.
const WebSocket = require('ws');
const { encode, decodeMultiple } = require('cbor-x');

class Connection {
  constructor(address) {
    this.waiting = new Map();
    this.opaque = 0;
    this.onRequest = () => ({ code: 3, remark: 'not supported' });
    this.socket = new WebSocket(`ws://${address}/`, ['rmq.cbor.v1'], { perMessageDeflate: false });
    this.socket.on('message', (data) => decodeMultiple(data, (command) => this.receive(command)));
    this.opened = new Promise((resolve, reject) => this.socket.on('open', resolve).on('error', reject));
    this.socket.on('close', (code, reason) => { console.error(`closed with ${code} ${reason}`); process.exitCode = 1; });
  }
  receive(command) {
    if (command.flag & 1) {
      this.waiting.get(command.opaque)(command);
      this.waiting.delete(command.opaque);
    } else {
      const answer = this.onRequest(command);
      if (!(command.flag & 2)) this.socket.send(encode({ ...answer, opaque: command.opaque, flag: 1 }));
    }
  }
  async request(code, extFields, body) {
    await this.opened;
    const opaque = ++this.opaque;
    const answer = new Promise((resolve) => this.waiting.set(opaque, resolve));
    this.socket.send(encode({ code, opaque, flag: 0, extFields, ...(body && { body }) }));
    const { code: result, remark, ...rest } = await answer;
    if (result !== 0) throw new Error(`${code} was answered ${result}: ${remark}`);
    return rest;
  }
}

function bodyOfRecord(record) {
  const hosts = 16 + (record.readInt32BE(36) & 0x10 ? 12 : 0) + (record.readInt32BE(36) & 0x20 ? 12 : 0);
  const at = 68 + hosts; // 84 with two IPv4 hosts
  return record.subarray(at + 4, at + 4 + record.readInt32BE(at)).toString();
}

async function main([nameServer, topic, text, asker]) {
  const names = new Connection(nameServer);
  const template = await names.request(105, { topic: 'TBW102', acceptStandardJsonOnly: true });
  const broker = new Connection(JSON.parse(template.body).brokerDatas[0].brokerAddrs[0]);
  const noticed = new Promise((resolve) => { broker.onRequest = (command) => resolve([command.code, command.extFields.consumerGroup]); });
  const subscription = { topic, subString: '*', tagsSet: [], codeSet: [], subVersion: 1, expressionType: 'TAG', classFilterMode: false };
  const consumer = { groupName: 'node', consumeType: 'CONSUME_PASSIVELY', messageModel: 'CLUSTERING', consumeFromWhere: 'CONSUME_FROM_FIRST_OFFSET', subscriptionDataSet: [subscription], unitMode: false };
  await broker.request(34, {}, Buffer.from(JSON.stringify({ clientID: '127.0.0.1@node', producerDataSet: [], consumerDataSet: [consumer] })));
  const sent = await broker.request(310, { producerGroup: 'node', topic, defaultTopic: 'TBW102', defaultTopicQueueNums: 4, queueId: 0, sysFlag: 0, bornTimestamp: Date.now(), flag: 0, properties: 'TAGS\u0001node\u0002', unitMode: false }, Buffer.from(text));
  const pulled = await broker.request(11, { consumerGroup: 'node', topic, queueId: 0, queueOffset: sent.extFields.queueOffset, maxMsgNums: 32, sysFlag: 2, commitOffset: 0, suspendTimeoutMillis: 5000, subVersion: 1 });
  const asking = new Connection(asker);
  asking.onRequest = (command) => ({ code: 0, body: Buffer.from(JSON.stringify({ group: command.extFields.consumerGroup })) });
  const heard = await asking.request(1);
  console.log(JSON.stringify({ offset: Number(sent.extFields.queueOffset), text: bodyOfRecord(pulled.body), notice: await noticed, heard: heard.body.toString() }));
}

main(process.argv.slice(2)).then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });
