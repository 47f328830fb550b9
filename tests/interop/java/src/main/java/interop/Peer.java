package interop;

import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/**
 * A quickstart-like producer and push consumer on Apache's client.
 *
 * <pre>
 *   Peer exchange NAMESRV TOPIC GROUP COUNT   both; every message must come back with its body, tag, key and property
 *   Peer send     NAMESRV TOPIC GROUP COUNT   sends bodies "message 0" ... ; prints what was acknowledged
 *   Peer receive  NAMESRV TOPIC GROUP COUNT   waits for COUNT different bodies; prints how many came
 * </pre>
 * The last line is {@code RESULT sent=N received=N wrong=N}; exit status 0 when that is what was asked for.
 */
public final class Peer {
    private static final int LIMIT_SECONDS = Integer.getInteger("peer.limit", 60);

    private final String namesrv;
    private final String topic;
    private final String group;
    private final int count;
    private final Map<String, Integer> received = new ConcurrentHashMap<>();
    private final Map<String, String> wrong = new ConcurrentHashMap<>();

    private Peer(String[] args) {
        namesrv = args[1];
        topic = args[2];
        group = args[3];
        count = Integer.parseInt(args[4]);
    }

    public static void main(String[] args) throws Exception {
        Peer peer = new Peer(args);
        int sent = 0;
        boolean good;
        switch (args[0]) {
            case "exchange":
                sent = peer.send();
                good = sent == peer.count & peer.receive();
                break;
            case "send":
                sent = peer.send();
                good = sent == peer.count;
                break;
            case "receive":
                good = peer.receive();
                break;
            default:
                throw new IllegalArgumentException(args[0]);
        }
        peer.wrong.forEach((body, why) -> System.out.println("WRONG " + body + ": " + why));
        System.out.println("RESULT sent=" + sent + " received=" + peer.received.size() + " wrong=" + peer.wrong.size());
        System.exit(good && peer.wrong.isEmpty() ? 0 : 1);
    }

    private int send() throws Exception {
        DefaultMQProducer producer = new DefaultMQProducer(group + "_producer");
        producer.setNamesrvAddr(namesrv);
        producer.start();
        int acknowledged = 0;
        for (int i = 0; i < count; i++) {
            Message message = new Message(topic, i % 2 == 0 ? "even" : "odd", "key" + i, ("message " + i).getBytes(StandardCharsets.UTF_8));
            message.putUserProperty("number", Integer.toString(i));
            SendResult result = producer.send(message);
            if (result.getSendStatus() == SendStatus.SEND_OK) {
                acknowledged++;
            } else {
                System.out.println("send " + i + ": " + result);
            }
        }
        producer.shutdown();
        return acknowledged;
    }

    private boolean receive() throws Exception {
        CountDownLatch missing = new CountDownLatch(count);
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(group);
        consumer.setNamesrvAddr(namesrv);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(topic, "even || odd");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            for (MessageExt message : messages) {
                String body = new String(message.getBody(), StandardCharsets.UTF_8);
                check(body, message);
                if (received.merge(body, 1, Integer::sum) == 1) {
                    missing.countDown();
                }
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        boolean all = missing.await(LIMIT_SECONDS, TimeUnit.SECONDS);
        consumer.shutdown();
        return all && received.size() == count;
    }

    private void check(String body, MessageExt message) {
        String number = body.startsWith("message ") ? body.substring("message ".length()) : "?";
        String tag = number.matches("[0-9]+") ? (Integer.parseInt(number) % 2 == 0 ? "even" : "odd") : "?";
        if (!number.equals(message.getUserProperty("number")) || !("key" + number).equals(message.getKeys()) || !tag.equals(message.getTags())
            || !topic.equals(message.getTopic())) {
            wrong.put(body, message.toString());
        }
    }
}
