package interop;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import org.apache.rocketmq.client.consumer.AllocateMessageQueueStrategy;
import org.apache.rocketmq.client.consumer.rebalance.AllocateMachineRoomNearby;
import org.apache.rocketmq.client.consumer.rebalance.AllocateMessageQueueAveragely;
import org.apache.rocketmq.client.consumer.rebalance.AllocateMessageQueueAveragelyByCircle;
import org.apache.rocketmq.client.consumer.rebalance.AllocateMessageQueueByConfig;
import org.apache.rocketmq.client.consumer.rebalance.AllocateMessageQueueByMachineRoom;
import org.apache.rocketmq.client.consumer.rebalance.AllocateMessageQueueConsistentHash;
import org.apache.rocketmq.common.message.MessageQueue;

/**
 * What Apache's allocation strategies answer.
 *
 * <p>Each input line has five fields parted by tabs: strategy, parameter, client id, queues ({@code topic;broker;id}
 * parted by spaces), client ids parted by spaces. Each output line has the places of the queues given, parted by
 * spaces, or {@code refused}.
 */
public final class AllocationPeer {
    private AllocationPeer() {
    }

    public static void main(String[] args) throws Exception {
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        PrintStream out = new PrintStream(System.out, false, "UTF-8");
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            out.println(answer(line.split("\t", -1)));
        }
        out.flush();
    }

    private static String answer(String[] fields) {
        List<MessageQueue> queues = new ArrayList<>();
        for (String text : fields[3].split(" ")) {
            String[] parts = text.split(";", -1);
            queues.add(new MessageQueue(parts[0], parts[1], Integer.parseInt(parts[2])));
        }
        List<String> clientIds = Arrays.asList(fields[4].split(" "));
        AllocateMessageQueueStrategy strategy = strategy(fields[0], fields[1], queues);
        StringBuilder places = new StringBuilder();
        try {
            for (MessageQueue queue : strategy.allocate("group", fields[2], queues, clientIds)) {
                places.append(places.length() == 0 ? "" : " ").append(queues.indexOf(queue));
            }
        } catch (IllegalArgumentException refusal) {
            return "refused";
        }
        return places.toString();
    }

    private static AllocateMessageQueueStrategy strategy(String name, String parameter, List<MessageQueue> queues) {
        switch (name) {
            case "AVG":
                return new AllocateMessageQueueAveragely();
            case "AVG_BY_CIRCLE":
                return new AllocateMessageQueueAveragelyByCircle();
            case "CONFIG":
                AllocateMessageQueueByConfig config = new AllocateMessageQueueByConfig();
                List<MessageQueue> third = new ArrayList<>();
                for (int place = 0; place < queues.size(); place += 3) {
                    third.add(queues.get(place));
                }
                config.setMessageQueueList(third);
                return config;
            case "MACHINE_ROOM":
                AllocateMessageQueueByMachineRoom room = new AllocateMessageQueueByMachineRoom();
                room.setConsumeridcs(new HashSet<>(Arrays.asList(parameter.split(",", -1))));
                return room;
            case "CONSISTENT_HASH":
                return new AllocateMessageQueueConsistentHash(Integer.parseInt(parameter));
            default:
                return new AllocateMachineRoomNearby(
                    strategy(name.substring(name.indexOf('-') + 1), parameter, queues),
                    new AllocateMachineRoomNearby.MachineRoomResolver() {
                        @Override
                        public String brokerDeployIn(MessageQueue queue) {
                            return queue.getBrokerName().split("-", -1)[0];
                        }

                        @Override
                        public String consumerDeployIn(String clientId) {
                            return clientId.split("-", -1)[0];
                        }
                    });
        }
    }
}
