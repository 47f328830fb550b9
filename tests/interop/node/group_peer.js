// A member of a consumer group on a Node remoting client (ali-ons), for as long as its standard input is open:
//
//     node group_peer.js NAMESRV TOPIC GROUP concurrent
//
// It says READY, then "GOT microseconds queue offset body" for each message.
'use strict';

const { Consumer } = require('ali-ons');

const [, , nameSrv, topic, consumerGroup] = process.argv;
const quiet = { info() {}, debug() {}, warn() {}, error: console.error };
const consumer = new Consumer({ httpclient: {}, nameSrv, consumerGroup, consumeFromWhere: 'CONSUME_FROM_FIRST_OFFSET', logger: quiet });

consumer.on('error', error => console.error(error));
consumer.subscribe(topic, '*', async message => {
  console.log(`GOT ${Date.now() * 1000} ${message.queueId} ${message.queueOffset} ${message.body}`);
});
consumer.ready().then(() => console.log('READY'));
process.stdin.resume();
process.stdin.on('end', async () => {
  await consumer.close();
  process.exit(0);
});
